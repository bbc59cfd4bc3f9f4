package pubsub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// maxIdle is how long a connection is kept without a push.
	maxIdle = time.Minute
	// answerBuffer holds the answer of a push endpoint, which is small; there may be thousands of connections.
	answerBuffer = 1 << 10
	// maxPooledRequest is the largest request whose memory is kept for the next one.
	maxPooledRequest = 64 << 10
	dialTimeout      = 10 * time.Second
)

// wire is an HTTP/1.1 client for nothing but pushes. http.Transport hands every request from its caller to a goroutine
// that writes and one that reads; here the pusher's own goroutine does both, which halves the CPU time of a push. It also
// sees a 102, which acks a push but which http.Transport takes for an announcement.
type wire struct {
	dialer  net.Dialer
	answers *http.Request // tells http.ReadResponse that the answers are to a POST
	buffers sync.Pool     // of *[]byte

	mu     sync.Mutex
	idle   map[string][]*wireConn // by host:port, the last used last
	open   map[*wireConn]struct{}
	closed bool
}

type wireConn struct {
	net.Conn
	r         *bufio.Reader
	idleSince time.Time
}

func newWire() *wire {
	return &wire{
		dialer: net.Dialer{Timeout: dialTimeout}, answers: &http.Request{Method: http.MethodPost},
		buffers: sync.Pool{New: func() any { return new([]byte) }},
		idle:    map[string][]*wireConn{}, open: map[*wireConn]struct{}{},
	}
}

// post sends a request and returns the status of its answer. headers yields the headers, valid ones, without those of the
// framing. The end of ctx stops the dialing only; close stops the rest.
func (w *wire) post(
	ctx context.Context, u *url.URL, timeout time.Duration, body []byte, headers func(yield func(name, value string)),
) (int, error) {
	buffer := w.buffers.Get().(*[]byte)
	request := appendRequest((*buffer)[:0], u, body, headers)
	defer func() {
		if cap(request) <= maxPooledRequest {
			*buffer = request
			w.buffers.Put(buffer)
		}
	}()
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "80")
	}
	deadline := time.Now().Add(timeout)
	if c := w.takeIdle(addr); c != nil {
		code, answered, err := w.exchange(c, addr, request, deadline)
		if err == nil || answered || ctx.Err() != nil || isTimeout(err) {
			return code, err
		}
		// The endpoint had closed the connection while it was idle: that is no answer.
	}
	c, err := w.dial(ctx, addr, deadline)
	if err != nil {
		return 0, err
	}
	code, _, err := w.exchange(c, addr, request, deadline)
	return code, err
}

func appendRequest(b []byte, u *url.URL, body []byte, headers func(yield func(name, value string))) []byte {
	b = append(b, "POST "...)
	b = append(b, u.RequestURI()...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, u.Host...)
	b = append(b, "\r\n"...)
	headers(func(name, value string) {
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	})
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

// exchange sends a request on a connection and reads the answer; answered says that it had begun to come.
func (w *wire) exchange(c *wireConn, addr string, request []byte, deadline time.Time) (code int, answered bool, err error) {
	reuse := false
	defer func() {
		if reuse {
			w.putIdle(addr, c)
		} else {
			w.drop(c)
		}
	}()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, false, fmt.Errorf("push: %w", err)
	}
	if _, err := c.Write(request); err != nil {
		return 0, false, fmt.Errorf("push: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return 0, false, fmt.Errorf("push: read answer: %w", err)
	}
	for {
		res, err := http.ReadResponse(c.r, w.answers)
		if err != nil {
			return 0, true, fmt.Errorf("push: read answer: %w", err)
		}
		if res.StatusCode < 200 && res.StatusCode != http.StatusProcessing && res.StatusCode != http.StatusSwitchingProtocols {
			continue // an announcement: the answer is still to come
		}
		n, err := io.CopyN(io.Discard, res.Body, maxAnswerBytes)
		reuse = res.StatusCode >= 200 && !res.Close && errors.Is(err, io.EOF) && n < maxAnswerBytes && c.r.Buffered() == 0
		_ = res.Body.Close()
		return res.StatusCode, true, nil
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (w *wire) dial(ctx context.Context, addr string, deadline time.Time) (*wireConn, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := w.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	c := &wireConn{Conn: conn, r: bufio.NewReaderSize(conn, answerBuffer)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	w.open[c] = struct{}{}
	return c, nil
}

// takeIdle returns the connection to an address that was used last, so that the others can grow old, or nil.
func (w *wire) takeIdle(addr string) *wireConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	conns := w.idle[addr]
	if len(conns) == 0 {
		return nil
	}
	c := conns[len(conns)-1]
	conns[len(conns)-1] = nil
	w.idle[addr] = conns[:len(conns)-1]
	return c
}

func (w *wire) putIdle(addr string, c *wireConn) {
	now := time.Now()
	c.idleSince = now
	w.mu.Lock()
	defer w.mu.Unlock()
	conns := append(w.idle[addr], c)
	old := 0
	for now.Sub(conns[old].idleSince) > maxIdle {
		_ = conns[old].Close()
		delete(w.open, conns[old])
		old++
	}
	w.idle[addr] = slices.Delete(conns, 0, old)
}

func (w *wire) drop(c *wireConn) {
	_ = c.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, c)
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for c := range w.open {
		_ = c.Close()
	}
	clear(w.idle)
}
