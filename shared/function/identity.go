package function

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// Identity says whose pushes a stage accepts. The zero value accepts nobody's.
type Identity struct {
	// Audience is the "aud" that tokens must have; Pub/Sub's default is the endpoint URL.
	Audience string `env:"AUDIENCE"`
	// ServiceAccounts are the e-mail addresses of the identities that may push.
	ServiceAccounts []string `env:"SERVICE_ACCOUNTS"`
	// Issuer is the "iss" that tokens must have.
	Issuer string `env:"ISSUER, default=https://accounts.google.com"`
	// JWKSURL is where the issuer publishes its keys.
	JWKSURL string `env:"JWKS_URL, default=https://www.googleapis.com/oauth2/v3/certs"`
}

// validate says which setting is missing.
func (i Identity) validate() error {
	switch {
	case i.Audience == "":
		return errors.New("PUSH_AUDIENCE is not set: without it a push cannot be told from anybody's request")
	case len(i.ServiceAccounts) == 0:
		return errors.New("PUSH_SERVICE_ACCOUNTS is not set: without it every holder of a Google identity could push")
	}
	return nil
}

// maxTokens bounds the cache of verified tokens. A push subscription uses one token for up to an hour.
const maxTokens = 256

// maxClockSkew is how far the issuer's clock may be ahead; it is what go-oidc allows for the claim "nbf".
const maxClockSkew = 5 * time.Minute

// verifier checks the tokens of pushes.
type verifier struct {
	identity Identity
	oidc     *oidc.IDTokenVerifier
	keys     *keySet
	now      func() time.Time

	mu    sync.RWMutex
	valid map[string]time.Time // tokens found good, and when they expire
}

func newVerifier(identity Identity, client *http.Client) *verifier {
	v := &verifier{identity: identity, now: time.Now, valid: make(map[string]time.Time)}
	v.keys = &keySet{url: identity.JWKSURL, client: client, now: time.Now}
	v.oidc = oidc.NewVerifier(identity.Issuer, v.keys, &oidc.Config{
		ClientID:             identity.Audience,
		SupportedSigningAlgs: []string{oidc.RS256}, // the only one that Google signs with; "none" and HS256 are out
		Now:                  func() time.Time { return v.now() },
	})
	return v
}

// verify checks that one of the Authorization headers holds a token of an accepted identity. More than one header is
// possible, because a robot may have put an attribute of that name into its message: that one proves nothing and must not
// stand in the way of Pub/Sub's own.
func (v *verifier) verify(ctx context.Context, authorization []string) error {
	err := WithKind(unauthenticated, errors.New("no bearer token"))
	for _, a := range authorization {
		scheme, token, ok := strings.Cut(a, " ")
		if !ok || !strings.EqualFold(scheme, "bearer") {
			continue
		}
		switch e := v.verifyToken(ctx, strings.TrimSpace(token)); {
		case e == nil:
			return nil
		case KindOf(err) != Transient: // a token that could not be checked may be the good one
			err = e
		}
	}
	return err
}

func (v *verifier) verifyToken(ctx context.Context, token string) error {
	v.mu.RLock()
	expiry, known := v.valid[token]
	v.mu.RUnlock()
	if known && v.now().Before(expiry) {
		return nil // checking the signature again would cost more than all the rest of a request
	}
	t, err := v.oidc.Verify(ctx, token)
	if err != nil {
		if v.keys.unavailable(token) {
			return WithKind(Transient, fmt.Errorf("verify token: %w", err))
		}
		return WithKind(unauthenticated, fmt.Errorf("verify token: %w", err))
	}
	if t.IssuedAt.After(v.now().Add(maxClockSkew)) {
		return WithKind(unauthenticated, fmt.Errorf("token is from the future: issued at %s", t.IssuedAt.UTC().Format(time.RFC3339)))
	}
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := t.Claims(&claims); err != nil {
		return WithKind(unauthenticated, fmt.Errorf("read claims of token: %w", err))
	}
	if !claims.Verified || !slices.Contains(v.identity.ServiceAccounts, claims.Email) {
		return WithKind(Denied, fmt.Errorf("identity %q (verified: %t) may not push here", claims.Email, claims.Verified))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.valid) >= maxTokens {
		clear(v.valid) // rare, and costs each live token one more check
	}
	v.valid[token] = t.Expiry
	return nil
}
