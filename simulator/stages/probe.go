package stages

import (
	"context"
	"net/http"
	"time"
)

// newProber asks readiness paths with a connection each, as kubelet does, and never through a proxy.
func newProber() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// probeTimeout is kubelet's default.
const probeTimeout = time.Second

// probe tells whether a GET of url answers 2xx.
func probe(ctx context.Context, client *http.Client, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close() // only the status matters
	return response.StatusCode >= 200 && response.StatusCode < 300
}
