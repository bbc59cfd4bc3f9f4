package function

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// How often an issuer's keys are fetched. Google rotates its keys about weekly and publishes them days ahead.
const (
	keysMaxAge   = time.Hour        // after this they are fetched again before a token is checked
	keysMinAge   = 10 * time.Second // and never more often than this, however many tokens name a key that is not there
	keysTimeout  = 5 * time.Second
	keysMaxBytes = 1 << 20
)

// keySet is the issuer's set of public keys, an oidc.KeySet. It differs from that package's own in what hostile or unlucky
// circumstances need: forged tokens cannot make it ask the issuer more often than every keysMinAge, and while the issuer
// is out of reach, keys that are known go on working.
type keySet struct {
	url    string
	client *http.Client
	now    func() time.Time

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // the last attempt
	err     error     // of the last attempt
}

// VerifySignature returns the payload of a token that one of the keys has signed.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return nil, fmt.Errorf("parse token: %w", err)
	}
	if len(jws.Signatures) != 1 {
		return nil, fmt.Errorf("token has %d signatures, want 1", len(jws.Signatures))
	}
	id := jws.Signatures[0].Header.KeyID
	for _, key := range s.named(ctx, id) {
		if payload, err := jws.Verify(&key); err == nil {
			return payload, nil
		}
	}
	return nil, fmt.Errorf("no key of %s verifies the token (key id %.40q)", s.url, id)
}

// unavailable says whether token failed because the issuer's keys could not be had.
func (s *keySet) unavailable(token string) bool {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || len(jws.Signatures) != 1 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil && len(s.find(jws.Signatures[0].Header.KeyID)) == 0
}

// named returns the keys with that id, after asking the issuer if they are old or there is none. Callers wait for one
// another's fetch.
func (s *keySet) named(ctx context.Context, id string) []jose.JSONWebKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.find(id)
	age := s.now().Sub(s.fetched)
	if age > keysMaxAge || (len(found) == 0 && age > keysMinAge) {
		s.fetched = s.now()
		// The fetch is for all callers, so it must not end with the request that happened to start it.
		keys, err := s.fetch(context.WithoutCancel(ctx))
		if s.err = err; err == nil {
			s.keys = keys
			found = s.find(id)
		}
	}
	return found
}

func (s *keySet) find(id string) []jose.JSONWebKey {
	var found []jose.JSONWebKey
	for _, k := range s.keys {
		if k.KeyID == id && k.IsPublic() {
			found = append(found, k)
		}
	}
	return found
}

func (s *keySet) fetch(ctx context.Context) (keys []jose.JSONWebKey, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fetch keys from %s: %w", s.url, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read-only: nothing to lose
	if res.StatusCode != http.StatusOK {
		return nil, errors.New(res.Status)
	}
	var set jose.JSONWebKeySet
	if err := json.NewDecoder(io.LimitReader(res.Body, keysMaxBytes)).Decode(&set); err != nil {
		return nil, err
	}
	return set.Keys, nil
}
