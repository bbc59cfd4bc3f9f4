package pubsub

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// The documented limits (https://cloud.google.com/pubsub/quotas#resource_limits).
const (
	maxPublishBytes     = 10_000_000 // of a message's data, and of a publish request
	maxPublishMessages  = 1_000
	maxAttributes       = 100
	maxAttributeKey     = 256   // bytes
	maxAttributeValue   = 1_024 // bytes
	maxOrderingKey      = 1_024 // bytes
	minAckDeadline      = 10    // seconds
	maxAckDeadline      = 600   // seconds
	minDeliveryAttempts = 5
	maxDeliveryAttempts = 100
	minRetention        = 10 * time.Minute
	maxRetention        = 31 * 24 * time.Hour
	defaultRetention    = 7 * 24 * time.Hour
	maxRetryBackoff     = 600 * time.Second
	defaultRetryBackoff = 10 * time.Second
	maxPageSize         = 1_000
)

var resourceName = regexp.MustCompile(`^projects/[^/]+/(topics|subscriptions|snapshots)/([A-Za-z][-A-Za-z0-9_.~+%]{2,254})$`)

// checkName checks the full name of a resource of the given kind: topics, subscriptions or snapshots.
func checkName(name, kind string) error {
	parts := resourceName.FindStringSubmatch(name)
	if parts == nil || parts[1] != kind || strings.HasPrefix(parts[2], "goog") {
		return status.Errorf(codes.InvalidArgument, "Invalid resource name given (name=%s), want projects/{project}/%s/{id}, the id of 3 to "+
			"255 letters, digits and -_.~+%%, starting with a letter and not with \"goog\".", name, kind)
	}
	return nil
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func checkPublish(req *pubsubpb.PublishRequest) error {
	messages := req.GetMessages()
	if len(messages) == 0 {
		return status.Error(codes.InvalidArgument, "the request has no messages")
	}
	if len(messages) > maxPublishMessages {
		return status.Errorf(codes.InvalidArgument, "the request has %d messages, at most %d are allowed", len(messages), maxPublishMessages)
	}
	total := 0
	for _, m := range messages {
		if err := checkMessage(m); err != nil {
			return err
		}
		total += messageSize(m)
	}
	if total > maxPublishBytes {
		return status.Errorf(codes.InvalidArgument, "the messages have %d bytes, at most %d are allowed in a request", total, maxPublishBytes)
	}
	return nil
}

func checkMessage(m *pubsubpb.PubsubMessage) error {
	if len(m.GetData()) == 0 && len(m.GetAttributes()) == 0 {
		return status.Error(codes.InvalidArgument, "a message must have data or at least one attribute")
	}
	if len(m.GetOrderingKey()) > maxOrderingKey {
		return status.Errorf(codes.InvalidArgument, "the ordering key has %d bytes, at most %d are allowed", len(m.GetOrderingKey()), maxOrderingKey)
	}
	if len(m.GetAttributes()) > maxAttributes {
		return status.Errorf(codes.InvalidArgument, "the message has %d attributes, at most %d are allowed", len(m.GetAttributes()), maxAttributes)
	}
	for key, value := range m.GetAttributes() {
		switch {
		case key == "" || len(key) > maxAttributeKey:
			return status.Errorf(codes.InvalidArgument, "an attribute key has %d bytes, 1 to %d are allowed", len(key), maxAttributeKey)
		case strings.HasPrefix(key, "goog"):
			return status.Errorf(codes.InvalidArgument, "the attribute key %q is reserved: it starts with \"goog\"", key)
		case len(value) > maxAttributeValue:
			return status.Errorf(codes.InvalidArgument, "the attribute %q has %d bytes, at most %d are allowed", key, len(value), maxAttributeValue)
		}
	}
	return nil
}

// messageSize counts what a publisher sent: data, attributes and ordering key.
func messageSize(m *pubsubpb.PubsubMessage) int {
	n := len(m.GetData()) + len(m.GetOrderingKey())
	for key, value := range m.GetAttributes() {
		n += len(key) + len(value)
	}
	return n
}

func checkMask(mask *fieldmaskpb.FieldMask, resource proto.Message) error {
	if len(mask.GetPaths()) == 0 {
		return status.Error(codes.InvalidArgument, "the update_mask in the request must be set and not empty")
	}
	if !mask.IsValid(resource) {
		return status.Errorf(codes.InvalidArgument, "the update_mask %v names a field that does not exist", mask.GetPaths())
	}
	return nil
}

// page picks one page of the names of a listing, in order; a page token is the last name of the page before.
func page[T any](all map[string]T, prefix string, size int32, token string) (names []string, next string, err error) {
	if size < 0 {
		return nil, "", status.Errorf(codes.InvalidArgument, "page_size is %d, want 0 or more", size)
	}
	if size == 0 || size > maxPageSize {
		size = maxPageSize
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(name, prefix) || name <= token {
			continue
		}
		if len(names) == int(size) {
			return names, names[len(names)-1], nil
		}
		names = append(names, name)
	}
	return names, "", nil
}
