package issuer_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/simulator/cloud/issuer"
)

const (
	email    = "pusher@robofleet-local.iam.gserviceaccount.com"
	audience = "http://127.0.0.1/validate"
)

// start serves an issuer whose keys live in dir.
func start(t *testing.T, dir string) *issuer.Issuer {
	t.Helper()
	var iss *issuer.Issuer
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { iss.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	iss, err := issuer.New(issuer.Config{URL: srv.URL, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

func verify(t *testing.T, iss *issuer.Issuer, token string) (*oidc.IDToken, error) {
	t.Helper()
	provider, err := oidc.NewProvider(context.Background(), iss.URL())
	if err != nil {
		t.Fatalf("discovery: %v", err)
	}
	return provider.Verifier(&oidc.Config{ClientID: audience}).Verify(context.Background(), token)
}

func TestTokenVerifiesWithTheClaimsOfGoogle(t *testing.T) {
	iss := start(t, "")
	token, expires, err := iss.IDToken(email, audience)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := verify(t, iss, token)
	if err != nil {
		t.Fatal(err)
	}
	var got issuer.Claims
	if err := verified.Claims(&got); err != nil {
		t.Fatal(err)
	}
	want := issuer.Claims{
		Issuer: iss.URL(), Audience: audience, AuthorizedParty: got.Subject, Subject: got.Subject,
		Email: email, EmailVerified: true, IssuedAt: expires.Unix() - 3600, Expiry: expires.Unix(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if got.Subject == "" || strings.Trim(got.Subject, "0123456789") != "" {
		t.Errorf("sub = %q, want a number", got.Subject)
	}
}

func TestForgedTokenIsRefused(t *testing.T) {
	iss, stranger := start(t, ""), start(t, "")
	tests := []struct {
		name  string
		forge func(*issuer.Claims)
		by    *issuer.Issuer
		want  string
	}{
		{"expired", func(c *issuer.Claims) { c.Expiry = time.Now().Add(-time.Minute).Unix() }, iss, "expired"},
		{"wrong audience", func(c *issuer.Claims) { c.Audience = "elsewhere" }, iss, "audience"},
		{"wrong issuer", func(c *issuer.Claims) { c.Issuer = "https://accounts.example.com" }, iss, "issue"},
		{"stranger's key", func(*issuer.Claims) {}, stranger, "signature"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			claims := iss.Claims(email, audience, time.Now())
			tt.forge(&claims)
			token, err := tt.by.Sign(claims)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := verify(t, iss, token); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("verify = %v, want an error about %q", err, tt.want)
			}
		})
	}
}

func TestKeysSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	token, _, err := start(t, dir).IDToken(email, audience)
	if err != nil {
		t.Fatal(err)
	}
	again := start(t, dir)
	// The second run has another address, so only the signature can be compared.
	provider, err := oidc.NewProvider(context.Background(), again.URL())
	if err != nil {
		t.Fatal(err)
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience, SkipIssuerCheck: true})
	if _, err := verifier.Verify(context.Background(), token); err != nil {
		t.Errorf("token of the first run: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "issuer-keys.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("key file mode = %o, want 600", got)
	}
}

func TestRotationKeepsThePreviousKeyOnly(t *testing.T) {
	iss := start(t, t.TempDir())
	token, _, err := iss.IDToken(email, audience)
	if err != nil {
		t.Fatal(err)
	}
	for i, wantErr := range []bool{false, true} {
		if err := iss.Rotate(); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(t, iss, token); (err != nil) != wantErr {
			t.Errorf("after rotation %d: verify = %v, want error %t", i+1, err, wantErr)
		}
	}
}

func TestCorruptKeyFileIsAClearError(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"not PEM", "garbage", "no key in"},
		{"not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "parse issuer key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "issuer-keys.pem"), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := issuer.New(issuer.Config{URL: "http://127.0.0.1", Dir: dir})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, want an error with %q", err, tt.want)
			}
		})
	}
}
