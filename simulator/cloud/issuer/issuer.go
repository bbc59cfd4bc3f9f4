// Package issuer is a local OpenID Connect issuer: it signs the identity tokens that the embedded Pub/Sub puts on its
// pushes, and publishes the keys that verify them. It stands where accounts.google.com stands in production; the tokens
// have the same claims, only iss differs.
//
// It proves nothing about who asks: whoever holds an Issuer can mint any token. It is for one machine and for tests.
package issuer

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// ConfigurationPath is where the OpenID Connect discovery document is served.
	ConfigurationPath = "/.well-known/openid-configuration"
	// JWKSPath is where the public keys are served.
	JWKSPath = "/oauth2/v3/certs"

	// tokenLifetime is how long an identity token of Google lives.
	tokenLifetime = time.Hour
	keyBits       = 2048
	keyFile       = "issuer-keys.pem"
	// keptKeys is how many keys verify at a time: the one that signs and the one before it, whose tokens may still live.
	keptKeys = 2
)

// Config configures an Issuer.
type Config struct {
	// URL is the issuer's own address, the iss claim of its tokens, for example "http://127.0.0.1:8085". Required.
	URL string
	// Dir is the folder that keeps the keys (file issuer-keys.pem, mode 0600). Empty: the keys live in memory only.
	Dir string
}

// Issuer mints identity tokens and serves the documents that verify them. Its methods may be called concurrently.
type Issuer struct {
	url, dir string

	mu     sync.RWMutex
	keys   []*rsa.PrivateKey // newest first; keys[0] signs
	signer jose.Signer
}

// New opens the issuer: it reads the keys of an earlier run from cfg.Dir, or makes the first one.
// It fails when the URL is missing or the key file cannot be read, written or understood.
func New(cfg Config) (*Issuer, error) {
	if cfg.URL == "" {
		return nil, errors.New("issuer: no URL configured")
	}
	i := &Issuer{url: strings.TrimSuffix(cfg.URL, "/"), dir: cfg.Dir}
	keys, err := i.load()
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return i, i.Rotate()
	}
	return i, i.use(keys)
}

// URL returns the iss claim of the issuer's tokens.
func (i *Issuer) URL() string { return i.url }

// Claims are the claims of an identity token as Google makes them for authenticated pushes
// (https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions).
type Claims struct {
	Issuer          string `json:"iss"`
	Audience        string `json:"aud"`
	AuthorizedParty string `json:"azp"`
	Subject         string `json:"sub"`
	Email           string `json:"email"`
	EmailVerified   bool   `json:"email_verified"`
	IssuedAt        int64  `json:"iat"` // seconds since 1970
	Expiry          int64  `json:"exp"` // seconds since 1970
}

// Claims returns the claims of a genuine token for the service account email and the audience, valid for an hour from
// now. Tests change single claims of it to forge tokens.
func (i *Issuer) Claims(email, audience string, now time.Time) Claims {
	id := accountID(email)
	return Claims{
		Issuer: i.url, Audience: audience, AuthorizedParty: id, Subject: id, Email: email, EmailVerified: true,
		IssuedAt: now.Unix(), Expiry: now.Add(tokenLifetime).Unix(),
	}
}

// IDToken mints a genuine token and says when it expires.
func (i *Issuer) IDToken(email, audience string) (token string, expires time.Time, err error) {
	c := i.Claims(email, audience, time.Now())
	token, err = i.Sign(c)
	return token, time.Unix(c.Expiry, 0), err
}

// Sign mints a token (JWS compact, RS256) with exactly the given claims, which must marshal to a JSON object.
func (i *Issuer) Sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("marshal token claims: %w", err)
	}
	i.mu.RLock()
	signer := i.signer
	i.mu.RUnlock()
	sig, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	token, err := sig.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("serialize token: %w", err)
	}
	return token, nil
}

// Rotate makes a new signing key. Tokens signed with the key before it still verify; older ones no longer do.
func (i *Issuer) Rotate() error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return fmt.Errorf("generate signing key: %w", err)
	}
	i.mu.RLock()
	keys := append([]*rsa.PrivateKey{key}, i.keys...)
	i.mu.RUnlock()
	keys = keys[:min(len(keys), keptKeys)]
	if err := i.save(keys); err != nil {
		return err
	}
	return i.use(keys)
}

// ServeHTTP serves the discovery document and the key set, both with GET and HEAD.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var doc any
	switch r.URL.Path {
	case ConfigurationPath:
		doc = map[string]any{
			"issuer":   i.url,
			"jwks_uri": i.url + JWKSPath,
			// Required by OpenID Connect Discovery 1.0, section 3, though nobody can log in here.
			"authorization_endpoint":                i.url + "/authorize",
			"response_types_supported":              []string{"id_token"},
			"subject_types_supported":               []string{"public"},
			"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		}
	case JWKSPath:
		doc = i.keySet()
	default:
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc) // the only possible error is a client that went away
}

func (i *Issuer) keySet() jose.JSONWebKeySet {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: &k.PublicKey, KeyID: keyID(k), Algorithm: string(jose.RS256), Use: "sig"})
	}
	return set
}

func (i *Issuer) use(keys []*rsa.PrivateKey) error {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: keys[0], KeyID: keyID(keys[0])}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("make token signer: %w", err)
	}
	i.mu.Lock()
	i.keys, i.signer = keys, signer
	i.mu.Unlock()
	return nil
}

func (i *Issuer) load() ([]*rsa.PrivateKey, error) {
	if i.dir == "" {
		return nil, nil
	}
	path := filepath.Join(i.dir, keyFile)
	rest, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read issuer keys: %w", err)
	}
	var keys []*rsa.PrivateKey
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse issuer key in %s (delete the file to start with new keys): %w", path, err)
		}
		rsaKey, ok := key.(*rsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("issuer key in %s is a %T, want RSA (delete the file to start with new keys)", path, key)
		}
		keys = append(keys, rsaKey)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key in %s (delete the file to start with new keys)", path)
	}
	return keys, nil
}

// save writes the keys to a new file and renames it, so that a crash leaves the old keys or the new ones.
func (i *Issuer) save(keys []*rsa.PrivateKey) error {
	if i.dir == "" {
		return nil
	}
	var out []byte
	for _, k := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return fmt.Errorf("marshal issuer key: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return fmt.Errorf("make issuer folder: %w", err)
	}
	f, err := os.CreateTemp(i.dir, keyFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("create issuer key file: %w", err)
	}
	_, err = f.Write(out)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(i.dir, keyFile))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one that matters
		return fmt.Errorf("write issuer keys: %w", err)
	}
	return nil
}

// keyID names a key by the hash of its public part, so that the name survives restarts with the key.
func keyID(k *rsa.PrivateKey) string {
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&k.PublicKey))
	return fmt.Sprintf("%x", sum[:20])
}

// accountID makes a stable numeric id for a service account, as Google's azp and sub are.
func accountID(email string) string {
	sum := sha256.Sum256([]byte(email))
	return "1" + strconv.FormatUint(binary.BigEndian.Uint64(sum[:8]), 10)
}
