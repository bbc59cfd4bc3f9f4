package pubsub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"
)

const (
	storeFile    = "pubsub.db"
	storeVersion = "1"
	// lockTimeout is how long to wait for another process to let go of the file.
	lockTimeout = time.Second
	// maxResident is how many bytes of payloads stay in memory; what exceeds it is read from the file at delivery.
	maxResident = 256 << 20
)

// The buckets. A subscription's backlog is not written down: it is the messages of its topic after its start that match
// its filter and have no ack, so that a message costs one write when it arrives and one delete when all have acked it.
var (
	bucketMeta          = []byte("meta")          // "version"
	bucketTopics        = []byte("topics")        // name → id, Topic
	bucketSubscriptions = []byte("subscriptions") // name → id, topic id, start sequence, Subscription
	bucketSnapshots     = []byte("snapshots")     // name → topic id, sequence, unacked sequences, Snapshot
	bucketMessages      = []byte("messages")      // sequence → topic id, PubsubMessage
	bucketAcks          = []byte("acks")          // sequence, subscription id → nothing

	buckets = [][]byte{bucketMeta, bucketTopics, bucketSubscriptions, bucketSnapshots, bucketMessages, bucketAcks}
)

// message is a published message. One message is shared by all its holders; the last one that lets go deletes it.
type message struct {
	seq         uint64
	topic       uint64
	published   time.Time
	size        int
	orderingKey string
	pb          *pubsubpb.PubsubMessage // nil: read it from the store
	holders     atomic.Int32            // subscriptions that have not acked it, snapshots, the topic's retained messages

	// Owned by the sequencer.
	ackKeys bool // the acks bucket has keys for it
	deleted bool
}

// change is what one transaction writes.
type change struct {
	messages []*message
	acks     []ack
	unacks   []ack
	puts     []record
	deletes  []record
}

type record struct{ bucket, key, value []byte }

// ack is the news that a subscription has no need of a message any more; subscription 0 stands for the last holder.
type ack struct {
	m            *message
	subscription uint64
}

// store keeps everything that must survive a restart in one bbolt file; without a file it keeps nothing. Messages and
// administration are written by the sequencer alone; acks gather here until its next transaction.
type store struct {
	db          *bolt.DB // nil: in memory only
	maxResident int64
	resident    atomic.Int64

	mu   sync.Mutex
	acks []ack
	wake chan struct{} // capacity 1: acks are waiting
}

func openStore(dir string, fsync bool) (*store, error) {
	st := &store{maxResident: maxResident, wake: make(chan struct{}, 1)}
	if dir == "" {
		return st, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	path := filepath.Join(dir, storeFile)
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: lockTimeout,
		// Without fsync a transaction is in the page cache when it is committed: it survives the end of the process,
		// however violent, but not of the machine.
		NoSync: !fsync, NoGrowSync: !fsync,
		// The free list grows with the backlog; writing it with every transaction would cost more than the messages.
		NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another process holds it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s (if it is corrupt, delete it to start empty): %w", path, err)
	}
	st.db = db
	if err := st.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return st, nil
}

func (st *store) prepare() error {
	return st.db.Update(func(tx *bolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return fmt.Errorf("create bucket %s: %w", b, err)
			}
		}
		meta := tx.Bucket(bucketMeta)
		version := meta.Get([]byte("version"))
		if version == nil {
			return meta.Put([]byte("version"), []byte(storeVersion))
		}
		if string(version) != storeVersion {
			return fmt.Errorf("data version is %q, want %q", version, storeVersion)
		}
		return nil
	})
}

func (st *store) close() error {
	if st.db == nil {
		return nil
	}
	if err := st.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// release takes one holder off a message and has its ack, or with the last holder its deletion, written soon.
func (st *store) release(m *message, subscription uint64) {
	last := m.holders.Add(-1) == 0
	if last && m.pb != nil {
		st.resident.Add(-int64(m.size))
	}
	if st.db == nil || !last && subscription == 0 {
		return
	}
	if last {
		subscription = 0
	}
	st.mu.Lock()
	st.acks = append(st.acks, ack{m, subscription})
	first := len(st.acks) == 1
	st.mu.Unlock()
	if first {
		select {
		case st.wake <- struct{}{}:
		default: // the sequencer has been told
		}
	}
}

// write commits a change, and every gathered ack with it, in one transaction.
func (st *store) write(c *change) error {
	if st.db == nil {
		return nil
	}
	st.mu.Lock()
	gathered := st.acks
	st.acks = nil
	st.mu.Unlock()
	if len(gathered) == 0 && len(c.messages) == 0 && len(c.acks) == 0 && len(c.unacks) == 0 && len(c.puts) == 0 && len(c.deletes) == 0 {
		return nil
	}
	c.acks = append(c.acks, gathered...)
	err := st.db.Update(func(tx *bolt.Tx) error { return c.apply(tx) })
	if err != nil {
		st.mu.Lock()
		st.acks = append(gathered, st.acks...) // to be tried again with the next transaction
		st.mu.Unlock()
		return fmt.Errorf("write to store: %w", err)
	}
	return nil
}

func (c *change) apply(tx *bolt.Tx) error {
	for _, r := range c.puts {
		if err := tx.Bucket(r.bucket).Put(r.key, r.value); err != nil {
			return fmt.Errorf("put %s %s: %w", r.bucket, r.key, err)
		}
	}
	for _, r := range c.deletes {
		if err := tx.Bucket(r.bucket).Delete(r.key); err != nil {
			return fmt.Errorf("delete %s %s: %w", r.bucket, r.key, err)
		}
	}
	messages, acks := tx.Bucket(bucketMessages), tx.Bucket(bucketAcks)
	if err := c.putMessages(messages); err != nil {
		return err
	}
	for _, a := range c.unacks {
		if err := acks.Delete(ackKey(a.m.seq, a.subscription)); err != nil {
			return fmt.Errorf("delete ack: %w", err)
		}
	}
	for _, a := range c.acks { // deletions first: they make acks of the same messages needless
		if a.subscription == 0 {
			a.m.deleted = true
			if err := deleteMessage(messages, acks, a.m); err != nil {
				return err
			}
		}
	}
	for _, a := range c.acks {
		if a.subscription == 0 || a.m.deleted {
			continue
		}
		a.m.ackKeys = true
		if err := acks.Put(ackKey(a.m.seq, a.subscription), nil); err != nil {
			return fmt.Errorf("put ack: %w", err)
		}
	}
	return nil
}

func (c *change) putMessages(bucket *bolt.Bucket) error {
	if len(c.messages) == 0 {
		return nil
	}
	bucket.FillPercent = 0.9 // keys only ever grow, so that pages can be filled
	for _, m := range c.messages {
		value := make([]byte, 8, 8+m.size+64)
		binary.BigEndian.PutUint64(value, m.topic)
		value, err := proto.MarshalOptions{}.MarshalAppend(value, m.pb)
		if err != nil {
			return fmt.Errorf("marshal message: %w", err)
		}
		if err := bucket.Put(sequenceKey(m.seq), value); err != nil {
			return fmt.Errorf("put message: %w", err)
		}
	}
	// The counter outlives the messages: a message id is never given twice.
	if err := bucket.SetSequence(c.messages[len(c.messages)-1].seq); err != nil {
		return fmt.Errorf("set sequence: %w", err)
	}
	return nil
}

func deleteMessage(messages, acks *bolt.Bucket, m *message) error {
	key := sequenceKey(m.seq)
	if err := messages.Delete(key); err != nil {
		return fmt.Errorf("delete message: %w", err)
	}
	if !m.ackKeys {
		return nil
	}
	var stale [][]byte // a bbolt cursor may skip keys after a delete
	for c, k := acks.Cursor(), []byte(nil); ; {
		if k == nil {
			k, _ = c.Seek(key)
		} else {
			k, _ = c.Next()
		}
		if !bytes.HasPrefix(k, key) || k == nil {
			break
		}
		stale = append(stale, k)
	}
	for _, k := range stale {
		if err := acks.Delete(k); err != nil {
			return fmt.Errorf("delete ack: %w", err)
		}
	}
	return nil
}

// payload returns the message itself, from memory or from the file. Its error means that the file is broken.
func (st *store) payload(m *message) (*pubsubpb.PubsubMessage, error) {
	if m.pb != nil {
		return m.pb, nil
	}
	pb := new(pubsubpb.PubsubMessage)
	err := st.db.View(func(tx *bolt.Tx) error {
		value := tx.Bucket(bucketMessages).Get(sequenceKey(m.seq))
		if len(value) < 8 {
			return errors.New("not found")
		}
		return proto.Unmarshal(value[8:], pb)
	})
	if err != nil {
		return nil, fmt.Errorf("read message %d from store: %w", m.seq, err)
	}
	return pb, nil
}

// keep decides whether a committed message's payload stays in memory.
func (st *store) keep(m *message) {
	if st.db != nil && st.resident.Load()+int64(m.size) > st.maxResident {
		m.pb = nil
		return
	}
	st.resident.Add(int64(m.size))
}

// read calls the functions for every stored record, in key order: resources first, then messages with their acks.
func (st *store) read(
	topic, subscription, snapshot func(name string, value []byte) error,
	message func(m *message, ackedBy func(subscription uint64) bool) error,
) (lastSeq uint64, err error) {
	if st.db == nil {
		return 0, nil
	}
	err = st.db.View(func(tx *bolt.Tx) error {
		for _, r := range []struct {
			bucket []byte
			f      func(string, []byte) error
		}{{bucketTopics, topic}, {bucketSubscriptions, subscription}} {
			if err := tx.Bucket(r.bucket).ForEach(func(k, v []byte) error { return r.f(string(k), v) }); err != nil {
				return fmt.Errorf("read %s: %w", r.bucket, err)
			}
		}
		messages, acks := tx.Bucket(bucketMessages), tx.Bucket(bucketAcks)
		lastSeq = messages.Sequence()
		if err := messages.ForEach(func(k, v []byte) error {
			m, err := decodeMessage(k, v)
			if err != nil {
				return err
			}
			next, _ := acks.Cursor().Seek(k)
			m.ackKeys = next != nil && bytes.HasPrefix(next, k)
			return message(m, func(subscription uint64) bool {
				return m.ackKeys && acks.Get(ackKey(m.seq, subscription)) != nil
			})
		}); err != nil {
			return fmt.Errorf("read messages: %w", err)
		}
		if err := tx.Bucket(bucketSnapshots).ForEach(func(k, v []byte) error { return snapshot(string(k), v) }); err != nil {
			return fmt.Errorf("read snapshots: %w", err)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read store (delete %s to start empty): %w", st.db.Path(), err)
	}
	return lastSeq, nil
}

func decodeMessage(key, value []byte) (*message, error) {
	if len(key) != 8 || len(value) < 8 {
		return nil, errors.New("message record too short")
	}
	pb := new(pubsubpb.PubsubMessage)
	if err := proto.Unmarshal(value[8:], pb); err != nil {
		return nil, fmt.Errorf("unmarshal message: %w", err)
	}
	m := newMessage(binary.BigEndian.Uint64(key), binary.BigEndian.Uint64(value), pb)
	return m, nil
}

func newMessage(seq, topic uint64, pb *pubsubpb.PubsubMessage) *message {
	return &message{
		seq: seq, topic: topic, published: pb.GetPublishTime().AsTime(), size: messageSize(pb),
		orderingKey: pb.GetOrderingKey(), pb: pb,
	}
}

func sequenceKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func ackKey(seq, subscription uint64) []byte {
	return binary.BigEndian.AppendUint64(sequenceKey(seq), subscription)
}

// marshalRecord makes the value of a resource: its numbers, then its protocol buffer.
func marshalRecord(pb proto.Message, numbers ...uint64) ([]byte, error) {
	var value []byte
	for _, n := range numbers {
		value = binary.BigEndian.AppendUint64(value, n)
	}
	value, err := proto.MarshalOptions{}.MarshalAppend(value, pb)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", pb, err)
	}
	return value, nil
}

// unmarshalRecord is the inverse of marshalRecord for n numbers.
func unmarshalRecord(value []byte, pb proto.Message, n int) ([]uint64, error) {
	if len(value) < 8*n {
		return nil, errors.New("record too short")
	}
	numbers := make([]uint64, n)
	for i := range numbers {
		numbers[i] = binary.BigEndian.Uint64(value[8*i:])
	}
	if err := proto.Unmarshal(value[8*n:], pb); err != nil {
		return nil, fmt.Errorf("unmarshal %T: %w", pb, err)
	}
	return numbers, nil
}
