package pubsub

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	pushUserAgent = "CloudPubSub-Google"
	// publishTimeFormat is how a push shows the publish time: RFC 3339 with milliseconds.
	publishTimeFormat = "2006-01-02T15:04:05.000Z07:00"
	// tokenRenewal is how long before its end a token is replaced.
	tokenRenewal = 15 * time.Minute
	// maxAnswerBytes is how much of an answer is read to keep its connection; a longer one costs the connection.
	maxAnswerBytes = 64 << 10
)

// ackCodes are the documented statuses that ack a push (https://cloud.google.com/pubsub/docs/push#receive_push); every
// other one, and no answer within the ack deadline, is a nack.
func acks(code int) bool {
	switch code {
	case http.StatusProcessing, http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent:
		return true
	}
	return false
}

// pushTarget is where and how a subscription pushes. It never changes.
type pushTarget struct {
	subscription string
	url          *url.URL
	timeout      time.Duration
	unwrapped    bool
	metadata     bool
	attempts     bool // tell the delivery attempt
	email        string
	audience     string
}

// newPushTarget reads the push configuration of a subscription; nil stands for pull.
func newPushTarget(pb *pubsubpb.Subscription) (*pushTarget, error) {
	cfg := pb.GetPushConfig()
	if cfg.GetPushEndpoint() == "" {
		return nil, nil
	}
	u, err := url.Parse(cfg.GetPushEndpoint())
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, status.Errorf(codes.InvalidArgument, "push_endpoint %q is not an absolute http or https URL", cfg.GetPushEndpoint())
	}
	t := &pushTarget{
		subscription: pb.GetName(), url: u, timeout: time.Duration(pb.GetAckDeadlineSeconds()) * time.Second,
		unwrapped: cfg.GetNoWrapper() != nil, metadata: cfg.GetNoWrapper().GetWriteMetadata(),
		attempts: pb.GetDeadLetterPolicy() != nil,
		email:    cfg.GetOidcToken().GetServiceAccountEmail(), audience: cfg.GetOidcToken().GetAudience(),
	}
	if cfg.GetOidcToken() != nil && t.email == "" {
		return nil, status.Error(codes.InvalidArgument, "push_config.oidc_token has no service_account_email")
	}
	if t.audience == "" {
		t.audience = cfg.GetPushEndpoint()
	}
	return t, nil
}

// dispatchPush starts pushes while the window allows. Each runs in a goroutine of its own that goes on with the next
// message as long as there is one.
func (s *subscription) dispatchPush(now time.Time) {
	for s.window.open(now) {
		e := s.takeOne()
		if e == nil {
			return
		}
		target, epoch := s.push, s.window.start()
		s.server.background(func(ctx context.Context) { s.pushAll(ctx, target, e, epoch) })
	}
}

func (s *subscription) pushAll(ctx context.Context, target *pushTarget, e *entry, epoch uint32) {
	p := s.server.pusher
	p.active.Add(1)
	defer p.active.Add(-1)
	for e != nil {
		start := time.Now()
		acked, err := s.pushOne(ctx, target, e)
		now := time.Now()
		s.mu.Lock()
		backsOff := !acked && epoch == s.window.epoch && ctx.Err() == nil
		s.window.finish(now, epoch, acked, now.Sub(start))
		if ctx.Err() == nil && e.state == stateLeased { // else the server closes, or a seek or a deletion came between
			if acked {
				s.ack(e)
			} else {
				s.fail(e, now)
			}
		}
		e = nil
		if s.push == target && !s.paused && s.window.open(now) {
			if e = s.takeOne(); e != nil {
				epoch = s.window.start()
			}
		}
		s.dispatch()
		delay := s.window.delay
		s.mu.Unlock()
		if backsOff { // once per back-off, not for each push of a failing endpoint
			s.server.log.Warn("push failed", "subscription", s.name, "endpoint", target.url.Redacted(), "error", err, "backoff", delay)
		}
	}
}

// pushOne delivers one message and says whether it was acked, and if not why.
func (s *subscription) pushOne(ctx context.Context, target *pushTarget, e *entry) (acked bool, err error) {
	pb, err := s.store().payload(e.m)
	if err != nil {
		return false, err
	}
	attempt := int32(0)
	if target.attempts {
		attempt = e.failures + 1
	}
	p, faults := s.server.pusher, s.server.faults
	if faults.duplicate() {
		_, _ = p.send(ctx, target, pb, attempt) // the copy's answer counts for nothing
	}
	code, err := p.send(ctx, target, pb, attempt)
	switch {
	case err != nil:
		return false, err
	case !acks(code):
		return false, fmt.Errorf("the endpoint answered %d", code)
	case faults.loseAck():
		return false, fmt.Errorf("the answer %d was lost by an injected fault", code)
	}
	return true, nil
}

// pusher sends messages to push endpoints.
type pusher struct {
	wire      *wire             // for http endpoints, unless there is a configured transport
	transport http.RoundTripper // for the others
	tokens    TokenSource
	active    atomic.Int64

	mu      sync.Mutex
	headers map[tokenKey]tokenHeader
}

type tokenKey struct{ email, audience string }

type tokenHeader struct {
	value   string // of the Authorization header
	expires time.Time
}

func newPusher(cfg Config) *pusher {
	p := &pusher{transport: cfg.Transport, tokens: cfg.Tokens, headers: map[tokenKey]tokenHeader{}}
	if p.transport == nil {
		p.wire = newWire()
		p.transport = &http.Transport{
			MaxIdleConnsPerHost: steadyWindow, IdleConnTimeout: maxIdle, DisableCompression: true,
		}
	}
	return p
}

// close ends the connections, those in use among them.
func (p *pusher) close() {
	if p.wire != nil {
		p.wire.close()
	}
	if t, ok := p.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// authorization returns the value of the Authorization header for a target, empty for none.
func (p *pusher) authorization(t *pushTarget) (string, error) {
	if t.email == "" {
		return "", nil
	}
	key := tokenKey{t.email, t.audience}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.headers[key]; time.Until(h.expires) > tokenRenewal {
		return h.value, nil
	}
	token, expires, err := p.tokens.IDToken(t.email, t.audience)
	if err != nil {
		return "", fmt.Errorf("mint push token: %w", err)
	}
	h := tokenHeader{"Bearer " + token, expires}
	p.headers[key] = h
	return h.value, nil
}

// send posts a message and returns the status of the answer.
func (p *pusher) send(ctx context.Context, t *pushTarget, pb *pubsubpb.PubsubMessage, attempt int32) (int, error) {
	authorization, err := p.authorization(t)
	if err != nil {
		return 0, err
	}
	body := pb.GetData()
	if !t.unwrapped {
		if body, err = wrap(t.subscription, pb, attempt); err != nil {
			return 0, err
		}
	}
	if p.wire != nil && t.url.Scheme == "http" {
		return p.wire.post(ctx, t.url, t.timeout, body, func(yield func(name, value string)) {
			t.headers(pb, attempt, authorization, yield)
		})
	}
	header := make(http.Header, 8+len(pb.GetAttributes()))
	t.headers(pb, attempt, authorization, header.Set)
	return p.roundTrip(ctx, t, header, body)
}

// roundTrip posts through the transport.
func (p *pusher) roundTrip(ctx context.Context, t *pushTarget, header http.Header, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url.String(), bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("make push request: %w", err)
	}
	req.Header = header
	res, err := p.transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("push: %w", err)
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxAnswerBytes) // the status has said everything
	_ = res.Body.Close()
	return res.StatusCode, nil
}

// headers yields the headers of a push: those of the sender and, when they are asked for, the metadata and the attributes
// of the message (https://cloud.google.com/pubsub/docs/payload-unwrapping). An attribute that cannot be a header, or that
// would pass for one of the sender's, is left out.
func (t *pushTarget) headers(pb *pubsubpb.PubsubMessage, attempt int32, authorization string, yield func(name, value string)) {
	yield("User-Agent", pushUserAgent)
	if authorization != "" {
		yield("Authorization", authorization)
	}
	if !t.unwrapped {
		yield("Content-Type", "application/json")
		return
	}
	if !t.metadata {
		return
	}
	for name, value := range pb.GetAttributes() {
		if httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value) && !isSenderHeader(name) {
			yield(name, value)
		}
	}
	yield("X-Goog-Pubsub-Subscription-Name", t.subscription)
	yield("X-Goog-Pubsub-Message-Id", pb.GetMessageId())
	yield("X-Goog-Pubsub-Publish-Time", pb.GetPublishTime().AsTime().Format(publishTimeFormat))
	if key := pb.GetOrderingKey(); key != "" && httpguts.ValidHeaderFieldValue(key) {
		yield("X-Goog-Pubsub-Ordering-Key", key)
	}
	if attempt > 0 {
		yield("X-Goog-Pubsub-Delivery-Attempt", strconv.Itoa(int(attempt)))
	}
}

const metadataPrefix = "X-Goog-Pubsub-"

// senderHeaders are the headers that no attribute may set: they say who sends, or how the request is framed.
var senderHeaders = []string{
	"Authorization", "Proxy-Authorization", "Proxy-Authenticate", "User-Agent", // who
	"Host", "Content-Length", "Content-Encoding", "Accept-Encoding", "Expect", // how
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", // RFC 9110, section 7.6.1
}

func isSenderHeader(name string) bool {
	if len(name) >= len(metadataPrefix) && strings.EqualFold(name[:len(metadataPrefix)], metadataPrefix) {
		return true
	}
	for _, h := range senderHeaders {
		if len(h) == len(name) && strings.EqualFold(h, name) {
			return true
		}
	}
	return false
}

// pushBody is the body of a wrapped push. Both spellings of the names are in it, as in production.
type pushBody struct {
	Message         pushMessage `json:"message"`
	Subscription    string      `json:"subscription"`
	DeliveryAttempt int32       `json:"deliveryAttempt,omitempty"`
}

type pushMessage struct {
	Attributes   map[string]string `json:"attributes,omitempty"`
	Data         string            `json:"data,omitempty"`
	MessageID    string            `json:"messageId"`
	MessageIDOld string            `json:"message_id"`
	OrderingKey  string            `json:"orderingKey,omitempty"`
	PublishTime  string            `json:"publishTime"`
	PublishOld   string            `json:"publish_time"`
}

func wrap(subscription string, pb *pubsubpb.PubsubMessage, attempt int32) ([]byte, error) {
	published := pb.GetPublishTime().AsTime().Format(publishTimeFormat)
	body, err := json.Marshal(pushBody{
		Message: pushMessage{
			Attributes: pb.GetAttributes(), Data: base64.StdEncoding.EncodeToString(pb.GetData()),
			MessageID: pb.GetMessageId(), MessageIDOld: pb.GetMessageId(), OrderingKey: pb.GetOrderingKey(),
			PublishTime: published, PublishOld: published,
		},
		Subscription: subscription, DeliveryAttempt: attempt,
	})
	if err != nil {
		return nil, fmt.Errorf("marshal push body: %w", err)
	}
	return body, nil
}
