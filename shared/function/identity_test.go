package function_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/robofleet/robofleet/shared/function"
)

const (
	audience = "https://validate.robofleet.dev/"
	pusher   = "pubsub-push@p.iam.gserviceaccount.com"
)

// clock is what the identity check takes for the time.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// issuer signs tokens and publishes its keys, as Google does.
type issuer struct {
	*httptest.Server
	mu      sync.Mutex
	keys    map[string]*rsa.PrivateKey
	down    bool
	fetches int
}

func newIssuer(t testing.TB) *issuer {
	i := &issuer{keys: map[string]*rsa.PrivateKey{"k1": newKey(t)}}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.fetches++
		if i.down {
			http.Error(w, "down", http.StatusInternalServerError)
			return
		}
		var set jose.JSONWebKeySet
		for id, key := range i.keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id, Algorithm: "RS256", Use: "sig"})
		}
		_ = json.NewEncoder(w).Encode(set)
	}))
	t.Cleanup(i.Close)
	return i
}

func newKey(t testing.TB) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

// fetched returns how often the keys were asked for since the last call.
func (i *issuer) fetched() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.fetches
	i.fetches = 0
	return n
}

// claims are those of a good token at now; pairs change them, nil takes one away.
func (i *issuer) claims(now time.Time, pairs ...any) map[string]any {
	m := map[string]any{
		"iss": i.URL, "aud": audience, "sub": "1", "email": pusher, "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for n := 0; n < len(pairs); n += 2 {
		if m[pairs[n].(string)] = pairs[n+1]; pairs[n+1] == nil {
			delete(m, pairs[n].(string))
		}
	}
	return m
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, kid string, key any, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (i *issuer) sign(t testing.TB, kid string, claims map[string]any) string {
	t.Helper()
	return sign(t, jose.RS256, kid, i.keys[kid], claims)
}

// guarded is a stage whose pushes are checked, at a time of its own.
type guarded struct {
	*recorder
	*httptest.Server
	issuer *issuer
	clock  *clock
}

func newGuarded(t testing.TB) guarded {
	g := guarded{recorder: &recorder{}, issuer: newIssuer(t), clock: &clock{now: time.Now().Truncate(time.Second)}}
	h := newHandler(t, g.handle, limits, guardedIdentity(g.issuer))
	function.SetClock(h, g.clock.Now)
	g.Server = newServer(t, h)
	return g
}

func guardedIdentity(i *issuer) *function.Identity {
	return &function.Identity{
		Audience: audience, ServiceAccounts: []string{"other@x", pusher}, Issuer: i.URL, JWKSURL: i.URL + "/jwks",
	}
}

// push returns the answer to a push with those Authorization headers.
func (g guarded) push(t testing.TB, authorization ...string) answer {
	t.Helper()
	h := headers(metadata(), attrs())
	h["Authorization"] = authorization
	return postText(t, g.URL, h, reading)
}

func (g guarded) good(t testing.TB) string {
	t.Helper()
	return g.issuer.sign(t, "k1", g.issuer.claims(g.clock.Now()))
}

func unsigned(claims map[string]any) string {
	payload, _ := json.Marshal(claims) // of strings and numbers only
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none","kid":"k1","typ":"JWT"}`)) + "." + enc(payload) + "."
}

func TestWhoMayPush(t *testing.T) {
	g := newGuarded(t)
	i, now := g.issuer, g.clock.Now()
	stranger := newKey(t)
	public, err := x509.MarshalPKIXPublicKey(i.keys["k1"].Public())
	if err != nil {
		t.Fatal(err)
	}
	signed := func(pairs ...any) []string { return []string{"Bearer " + i.sign(t, "k1", i.claims(now, pairs...))} }
	good := signed()[0]
	parts := strings.Split(strings.TrimPrefix(good, "Bearer "), ".")
	other := strings.Split(i.sign(t, "k1", i.claims(now, "email", "mallory@x")), ".")
	for _, tt := range []struct {
		name          string
		authorization []string
		status        int
	}{
		{"good", []string{good}, 204},
		{"good, scheme in small letters", []string{"bearer " + good[7:]}, 204},
		{"good, two spaces", []string{"Bearer  " + good[7:]}, 204},
		{"the audience among others", signed("aud", []string{"x", audience}), 204},
		{"clock a little ahead", signed("iat", now.Add(time.Minute).Unix(), "nbf", now.Add(time.Minute).Unix()), 204},
		{"no iat", signed("iat", nil), 204},

		{"none", nil, 401},
		{"empty", []string{""}, 401},
		{"bearer of nothing", []string{"Bearer "}, 401},
		{"basic", []string{"Basic " + good[7:]}, 401},
		{"not a token", []string{"Bearer x"}, 401},
		{"alg none", []string{"Bearer " + unsigned(i.claims(now))}, 401},
		{"HS256 by the public key", []string{"Bearer " + sign(t, jose.HS256, "k1", public, i.claims(now))}, 401},
		{"RS384", []string{"Bearer " + sign(t, jose.RS384, "k1", i.keys["k1"], i.claims(now))}, 401},
		{"a stranger's key by a known name", []string{"Bearer " + sign(t, jose.RS256, "k1", stranger, i.claims(now))}, 401},
		{"a stranger's key", []string{"Bearer " + sign(t, jose.RS256, "k9", stranger, i.claims(now))}, 401},
		{"claims of one token, signature of another", []string{"Bearer " + parts[0] + "." + other[1] + "." + parts[2]}, 401},
		{"wrong issuer", signed("iss", "https://accounts.example.com"), 401},
		{"no issuer", signed("iss", nil), 401},
		{"wrong audience", signed("aud", "https://hot-write.robofleet.dev/"), 401},
		{"no audience", signed("aud", nil), 401},
		{"expired", signed("exp", now.Add(-time.Second).Unix()), 401},
		{"no expiry", signed("exp", nil), 401},
		{"not valid for an hour yet", signed("nbf", now.Add(time.Hour).Unix()), 401},
		{"issued in an hour", signed("iat", now.Add(time.Hour).Unix(), "exp", now.Add(2*time.Hour).Unix()), 401},
		{"claims that are no claims", signed("email", 7), 401},

		{"wrong e-mail", signed("email", "mallory@p.iam.gserviceaccount.com"), 403},
		{"no e-mail", signed("email", nil), 403},
		{"e-mail not verified", signed("email_verified", false), 403},
		{"e-mail of unknown standing", signed("email_verified", nil), 403},

		{"two headers, the good one first", []string{good, "Bearer robot"}, 204},
		{"two headers, the good one last", []string{"Bearer robot", good}, 204},
		{"two headers, a scheme nobody knows", []string{"Robot x", good}, 204},
		{"two headers, both bad", []string{"Bearer robot", "Bearer robot"}, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := g.push(t, tt.authorization...)
			if got.status != tt.status {
				t.Errorf("status: got %d (%s), want %d", got.status, got.body, tt.status)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (challenge == "Bearer") != (tt.status == 401) {
				t.Errorf("WWW-Authenticate: got %q with status %d", challenge, got.status)
			}
			all := g.take()
			if (len(all) == 1) != (tt.status == 204) {
				t.Fatalf("the handler saw %d events", len(all))
			}
			for _, s := range all {
				for name, value := range s.Attributes {
					if strings.Contains(value, "earer") {
						t.Errorf("attribute %s has a token: %s", name, value)
					}
				}
			}
		})
	}
}

func TestARobotsAttributesAreNoIdentity(t *testing.T) {
	g := newGuarded(t)
	robots := map[string]string{
		"authorization": g.good(t), // without the scheme, as an attribute would have to be to look like a header
		"ce-token":      "Bearer " + g.good(t), "x-goog-authenticated-user-email": pusher, "x-serverless-authorization": "Bearer " + g.good(t),
	}
	if got := postText(t, g.URL, headers(metadata(), attrs(), robots), reading); got.status != 401 {
		t.Errorf("unwrapped: got %d, want 401", got.status)
	}
	robots["authorization"] = "Bearer " + g.good(t)
	if got := postText(t, g.URL, headers(plainJSON), wrapped(robots, reading)); got.status != 401 {
		t.Errorf("wrapped: got %d, want 401", got.status)
	}
	if got := g.take(); len(got) > 0 {
		t.Errorf("the handler saw %v", got)
	}
}

func TestAKnownTokenIsTakenUntilItExpires(t *testing.T) {
	g := newGuarded(t)
	token := "Bearer " + g.good(t)
	for range 3 {
		if got := g.push(t, token); got.status != 204 {
			t.Fatalf("fresh: got %d, want 204", got.status)
		}
	}
	g.clock.advance(time.Hour - time.Second)
	if got := g.push(t, token); got.status != 204 {
		t.Errorf("a second before it expires: got %d, want 204", got.status)
	}
	g.clock.advance(2 * time.Second)
	if got := g.push(t, token); got.status != 401 {
		t.Errorf("a second after: got %d, want 401", got.status)
	}
}

func TestKeysAreFetchedOnce(t *testing.T) {
	g := newGuarded(t)
	if n := g.issuer.fetched(); n != 0 {
		t.Errorf("before the first push: %d fetches", n)
	}
	for n := range 20 {
		token := g.issuer.sign(t, "k1", g.issuer.claims(g.clock.Now(), "sub", fmt.Sprint(n)))
		if got := g.push(t, "Bearer "+token); got.status != 204 {
			t.Fatalf("got %d, want 204", got.status)
		}
	}
	if n := g.issuer.fetched(); n != 1 {
		t.Errorf("20 tokens by one key: got %d fetches, want 1", n)
	}
}

func TestARotatedKeyIsFetched(t *testing.T) {
	g := newGuarded(t)
	g.push(t, "Bearer "+g.good(t))
	g.issuer.fetched()
	g.clock.advance(time.Minute)
	g.issuer.set(func() { g.issuer.keys["k2"] = newKey(t) })
	for n := range 3 {
		token := g.issuer.sign(t, "k2", g.issuer.claims(g.clock.Now(), "sub", fmt.Sprint(n)))
		if got := g.push(t, "Bearer "+token); got.status != 204 {
			t.Errorf("new key: got %d (%s), want 204", got.status, got.body)
		}
	}
	if n := g.issuer.fetched(); n != 1 {
		t.Errorf("new key: got %d fetches, want 1", n)
	}
	withdrawn := g.issuer.keys["k2"]
	g.issuer.set(func() { delete(g.issuer.keys, "k2") })
	g.clock.advance(2 * time.Hour)
	if got := g.push(t, "Bearer "+sign(t, jose.RS256, "k2", withdrawn, g.issuer.claims(g.clock.Now()))); got.status != 401 {
		t.Errorf("withdrawn key, two hours later: got %d, want 401", got.status)
	}
}

func TestForgedTokensDoNotHammerTheIssuer(t *testing.T) {
	g := newGuarded(t)
	stranger := newKey(t)
	forge := func(n int) {
		t.Helper()
		for i := range n {
			token := sign(t, jose.RS256, fmt.Sprintf("k%d", i+100), stranger, g.issuer.claims(g.clock.Now()))
			if got := g.push(t, "Bearer "+token); got.status != 401 {
				t.Fatalf("forged: got %d, want 401", got.status)
			}
		}
	}
	forge(20)
	if n := g.issuer.fetched(); n != 1 {
		t.Errorf("20 unknown keys: got %d fetches, want 1", n)
	}
	g.clock.advance(11 * time.Second)
	forge(20)
	if n := g.issuer.fetched(); n != 1 {
		t.Errorf("20 more, 11 s later: got %d fetches, want 1", n)
	}
}

func TestKnownKeysOutlastTheIssuer(t *testing.T) {
	g := newGuarded(t)
	if got := g.push(t, "Bearer "+g.good(t)); got.status != 204 {
		t.Fatalf("got %d, want 204", got.status)
	}
	g.issuer.set(func() { g.issuer.down = true })
	g.clock.advance(3 * time.Hour)
	if got := g.push(t, "Bearer "+g.good(t)); got.status != 204 {
		t.Errorf("known key, issuer down: got %d (%s), want 204", got.status, got.body)
	}
	g.clock.advance(time.Minute)
	g.issuer.set(func() { g.issuer.keys["k2"] = newKey(t) })
	rotated := "Bearer " + g.issuer.sign(t, "k2", g.issuer.claims(g.clock.Now()))
	got := g.push(t, rotated)
	if got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("unknown key, issuer down: got %d, Retry-After %q, want 503 with one", got.status, got.header.Get("Retry-After"))
	}
	if got := g.push(t, rotated, "Bearer robot"); got.status != 503 {
		t.Errorf("unknown key, issuer down, and a bad token behind: got %d, want 503", got.status)
	}
	if got := g.push(t, "Bearer "+g.issuer.sign(t, "k1", g.issuer.claims(g.clock.Now(), "aud", "x"))); got.status != 401 {
		t.Errorf("bad token by a known key, issuer down: got %d, want 401", got.status)
	}
	g.issuer.set(func() { g.issuer.down = false })
	g.clock.advance(11 * time.Second)
	if got := g.push(t, rotated); got.status != 204 {
		t.Errorf("issuer up again: got %d (%s), want 204", got.status, got.body)
	}
}

func TestWithoutKeysNobodyIsTurnedAway(t *testing.T) {
	g := newGuarded(t)
	g.issuer.set(func() { g.issuer.down = true })
	if got := g.push(t, "Bearer "+g.good(t)); got.status != 503 {
		t.Errorf("issuer down from the start: got %d, want 503", got.status)
	}
	if got := g.push(t); got.status != 401 {
		t.Errorf("no token: got %d, want 401", got.status)
	}
}

func TestTheCacheOfTokensIsBounded(t *testing.T) {
	g := newGuarded(t)
	for n := range 600 { // more than twice what is kept
		token := g.issuer.sign(t, "k1", g.issuer.claims(g.clock.Now(), "sub", fmt.Sprint(n)))
		if got := g.push(t, "Bearer "+token); got.status != 204 {
			t.Fatalf("token %d: got %d, want 204", n, got.status)
		}
	}
}
