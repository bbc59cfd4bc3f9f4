package pubsub

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

func noHeaders(func(name, value string)) {}

func mustParse(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// answerRaw serves each connection by a function; it returns the address.
func answerRaw(t *testing.T, serve func(n int, c net.Conn, r *http.Request)) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				serve(n, c, r)
			}
			_ = c.Close()
		}
	}()
	return mustParse(t, "http://"+l.Addr().String()+"/path?q=1")
}

func reply(text string) func(int, net.Conn, *http.Request) {
	return func(_ int, c net.Conn, _ *http.Request) { _, _ = io.WriteString(c, text) }
}

func TestWireReadsEveryShapeOfAnswer(t *testing.T) {
	tests := []struct {
		name, answer string
		want         int
		wantErr      bool
	}{
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, false},
		{"body of known length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, false},
		{"chunked body", "HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 503, false},
		{"body until close", "HTTP/1.0 201 Created\r\n\r\nwhatever", 201, false},
		{"processing is an answer", "HTTP/1.1 102 Processing\r\n\r\n", 102, false},
		{"early hints are not", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 500, false},
		{"not HTTP", "hello\r\n\r\n", 0, true},
		{"nothing", "", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire()
			defer w.close()
			got, err := w.post(t.Context(), answerRaw(t, reply(tt.answer)), time.Minute, []byte("x"), noHeaders)
			if got != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("post = %d, %v, want %d and error %t", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestWireSendsWhatItIsGiven(t *testing.T) {
	got := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		got <- r
	}))
	defer srv.Close()
	w := newWire()
	defer w.close()
	code, err := w.post(t.Context(), mustParse(t, srv.URL+"/a%20b?q=1"), time.Minute, []byte("body"), func(yield func(name, value string)) {
		yield("ce-id", "R-1/b/1")
	})
	if err != nil || code != http.StatusOK {
		t.Fatalf("post = %d, %v", code, err)
	}
	r := <-got
	body, _ := io.ReadAll(r.Body)
	if r.Method != http.MethodPost || r.RequestURI != "/a%20b?q=1" || r.Header.Get("Ce-Id") != "R-1/b/1" || string(body) != "body" {
		t.Errorf("got %s %s, Ce-Id %q, body %q", r.Method, r.RequestURI, r.Header.Get("Ce-Id"), body)
	}
}

func TestWireKeepsConnections(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		conns[r.RemoteAddr] = true
	}))
	defer srv.Close()
	w := newWire()
	defer w.close()
	for range 5 {
		if _, err := w.post(t.Context(), mustParse(t, srv.URL), time.Minute, nil, noHeaders); err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("five pushes took %d connections, want 1", len(conns))
	}
}

func TestWireRetriesOnAConnectionThatWasClosedWhileIdle(t *testing.T) {
	// Every connection ends after its first answer, which promises to go on.
	u := answerRaw(t, reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	w := newWire()
	defer w.close()
	for range 3 {
		if code, err := w.post(t.Context(), u, time.Minute, nil, noHeaders); err != nil || code != 200 {
			t.Fatalf("post = %d, %v", code, err)
		}
	}
}

func TestWireGivesUpAtItsTimeoutAndOnClose(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	arrived := make(chan struct{}, 2)
	u := answerRaw(t, func(int, net.Conn, *http.Request) { arrived <- struct{}{}; <-hang })
	w := newWire()
	_, err := w.post(t.Context(), u, 10*time.Millisecond, nil, noHeaders)
	if !isTimeout(err) {
		t.Errorf("post to a silent endpoint = %v, want a timeout", err)
	}
	w.close()
	if _, err := w.post(context.Background(), u, time.Minute, nil, noHeaders); err == nil {
		t.Error("post after close succeeded")
	}
}
