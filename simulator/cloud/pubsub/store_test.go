package pubsub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// reopen closes a server and opens its folder again, as a restart does.
func (b bed) reopen(dir string) bed {
	b.Helper()
	if err := b.Close(); err != nil {
		b.Fatal(err)
	}
	return newBed(b.T, Config{Dir: dir})
}

func TestRestartKeepsResourcesAndBacklog(t *testing.T) {
	dir := t.TempDir()
	b := newBed(t, Config{Dir: dir})
	b.subscribe(&pubsubpb.Subscription{Filter: `attributes:none OR NOT attributes:none`, Labels: map[string]string{"stage": "validate"}})
	b.subscribe(&pubsubpb.Subscription{Name: subName + "-2"})
	first := b.publish("a", "b", "c")
	got := b.pull(subName, 1)
	if err := b.ack(subName, got...); err != nil {
		t.Fatal(err)
	}

	b = b.reopen(dir)
	b.want("labels", map[string]string{"stage": "validate"}, b.subscriptions[subName].pb.GetLabels())
	left := b.pull(subName, 10)
	b.want("backlog", []string{"b", "c"}, payloads(left))
	b.want("message id", first[1], left[0].GetMessage().GetMessageId())
	b.want("backlog of the other", []string{"a", "b", "c"}, payloads(b.pull(subName+"-2", 10)))
	if next := b.publish("d")[0]; next <= first[2] {
		t.Errorf("message id %s after %s, want a larger one", next, first[2])
	}
	if err := errors.Join(b.ack(subName, left...), b.ack(subName+"-2", b.pull(subName+"-2", 10)...)); err != nil {
		t.Fatal(err)
	}

	b = b.reopen(dir)
	b.want("backlog after acks", []string{"d"}, payloads(b.pull(subName, 10)))
}

func TestAckedMessagesLeaveTheFile(t *testing.T) {
	dir := t.TempDir()
	b := newBed(t, Config{Dir: dir})
	b.subscribe(&pubsubpb.Subscription{})
	b.subscribe(&pubsubpb.Subscription{Name: subName + "-2"})
	b.publish(make100()...)
	if err := b.ack(subName, b.pull(subName, 100)...); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(dir) // the acks of one subscription are on file
	if err := b.ack(subName+"-2", b.pull(subName+"-2", 100)...); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(dir)
	n := 0
	if _, err := b.store.read(ignore, ignore, ignore, func(*message, func(uint64) bool) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	b.want("stored messages", 0, n)
}

func ignore(string, []byte) error { return nil }

func TestRestartKeepsSnapshotsAndReplays(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := newBed(t, Config{Dir: dir})
	b.subscribe(&pubsubpb.Subscription{})
	b.subscribe(&pubsubpb.Subscription{Name: subName + "-replay", RetainAckedMessages: true})
	b.publish("acked")
	if err := b.ack(subName, b.pull(subName, 1)...); err != nil {
		t.Fatal(err)
	}
	b.publish("backlog")
	snapshot := "projects/p/snapshots/snap"
	if _, err := b.CreateSnapshot(ctx, &pubsubpb.CreateSnapshotRequest{Name: snapshot, Subscription: subName}); err != nil {
		t.Fatal(err)
	}
	b.publish("later")
	if err := errors.Join(b.ack(subName, b.pull(subName, 9)...), b.ack(subName+"-replay", b.pull(subName+"-replay", 9)...)); err != nil {
		t.Fatal(err)
	}

	b = b.reopen(dir)
	b.want("backlog", []string(nil), payloads(b.pull(subName, 9)))
	if _, err := b.Seek(ctx, &pubsubpb.SeekRequest{Subscription: subName, Target: &pubsubpb.SeekRequest_Snapshot{Snapshot: snapshot}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Seek(ctx, &pubsubpb.SeekRequest{
		Subscription: subName + "-replay", Target: &pubsubpb.SeekRequest_Time{Time: timestamppb.New(time.Now().Add(-time.Hour))},
	}); err != nil {
		t.Fatal(err)
	}

	b = b.reopen(dir) // what a seek brought back survives too
	b.want("backlog of the snapshot", []string{"backlog", "later"}, payloads(b.pull(subName, 9)))
	b.want("replayed", []string{"acked", "backlog", "later"}, payloads(b.pull(subName+"-replay", 9)))
	if _, err := b.DeleteSnapshot(ctx, &pubsubpb.DeleteSnapshotRequest{Snapshot: snapshot}); err != nil {
		t.Fatal(err)
	}
}

func TestTopicRetentionReplaysToALaterSubscription(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := newBed(t, Config{Dir: dir})
	if _, err := b.CreateTopic(ctx, &pubsubpb.Topic{Name: topicName, MessageRetentionDuration: durationpb.New(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	b.publish("before")
	b.subscribe(&pubsubpb.Subscription{})
	b.want("backlog", []string(nil), payloads(b.pull(subName, 9)))
	if _, err := b.Seek(ctx, &pubsubpb.SeekRequest{
		Subscription: subName, Target: &pubsubpb.SeekRequest_Time{Time: timestamppb.New(time.Now().Add(-time.Minute))},
	}); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(dir)
	b.want("backlog after seek", []string{"before"}, payloads(b.pull(subName, 9)))
}

func TestLargeBacklogIsReadFromTheFile(t *testing.T) {
	dir := t.TempDir()
	b := newBed(t, Config{Dir: dir})
	b.store.maxResident = 10
	b.subscribe(&pubsubpb.Subscription{})
	want := make100()
	b.publish(want...)
	if got := b.store.resident.Load(); got > 10 {
		t.Errorf("%d bytes are in memory, want at most 10", got)
	}
	got := b.pull(subName, 100)
	b.want("messages", want, payloads(got))
	if err := b.ack(subName, got...); err != nil {
		t.Fatal(err)
	}
	b.want("bytes in memory", int64(0), b.store.resident.Load())
}

// TestKilledProcessLosesNothing publishes from a process of its own, kills it with SIGKILL while it does, and looks for
// every message that was confirmed.
func TestKilledProcessLosesNothing(t *testing.T) {
	const childDir = "PUBSUB_TEST_CHILD_DIR"
	if dir := os.Getenv(childDir); dir != "" {
		publishForever(t, dir)
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var confirmed []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "confirmed "); ok {
			confirmed = append(confirmed, id)
		}
		if len(confirmed) == 500 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed: the error is expected
	if len(confirmed) < 500 {
		t.Fatalf("the child confirmed %d messages, want 500", len(confirmed))
	}
	b := newBed(t, Config{Dir: dir})
	var stored []string
	for _, m := range b.pull(subName, 100_000) {
		stored = append(stored, m.GetMessage().GetMessageId())
	}
	for _, id := range confirmed {
		if !slices.Contains(stored, id) {
			t.Fatalf("message %s was confirmed and is lost", id)
		}
	}
}

func publishForever(t *testing.T, dir string) {
	b := newBed(t, Config{Dir: dir})
	b.subscribe(&pubsubpb.Subscription{})
	for {
		for _, id := range b.publish("a", "b", "c") {
			fmt.Println("confirmed", id)
		}
	}
}

func TestBrokenDataFileIsAClearError(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string)
		want    string
	}{
		{"corrupt", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, storeFile), make([]byte, 1<<15), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "if it is corrupt, delete it"},
		{"in use", func(t *testing.T, dir string) { newBed(t, Config{Dir: dir}) }, "another process holds it"},
		{"not a folder", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "make data folder"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.prepare(t, dir)
			if tt.name == "not a folder" {
				dir = filepath.Join(dir, "file", "data")
			}
			s, err := Start(context.Background(), Config{Dir: dir})
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTakenPortIsAClearError(t *testing.T) {
	first, err := Start(context.Background(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	if _, err := Start(context.Background(), Config{Addr: first.Addr()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("Start = %v, want an error about the address", err)
	}
}
