package ingress

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseBrokers(t *testing.T) {
	tests := []struct {
		name, text string
		want       map[string]string
		wantErr    string
	}{
		{name: "nothing", text: "", want: map[string]string{}},
		{name: "some", text: "a/b=c\n# why\n\n d/e=f \n", want: map[string]string{"a/b": "c", "d/e": "f"}},
		{name: "no newline at the end", text: "a/b=c", want: map[string]string{"a/b": "c"}},
		{name: "no topic", text: "a/b=c\na/d=\n", wantErr: "line 2"},
		{name: "no namespace", text: "/b=c", wantErr: "line 1"},
		{name: "a path", text: "a/b/c=d", wantErr: "line 1"},
		{name: "a full topic name", text: "a/b=projects/p/topics/t", wantErr: "line 1"},
		{name: "twice", text: "a/b=c\na/b=d", wantErr: "twice"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseBrokers(test.text)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("error %v, want one about %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("Brokers (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseBrokers(f *testing.F) {
	for _, seed := range []string{"", "a/b=c\n", "# x\na/b=c\nd/e=f", "a/b", "=", "/=\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		brokers, err := ParseBrokers(text)
		if err != nil {
			return
		}
		again, err := ParseBrokers(FormatBrokers(brokers))
		if err != nil {
			t.Fatalf("what FormatBrokers writes is not read: %v", err)
		}
		if diff := cmp.Diff(brokers, again); diff != "" {
			t.Errorf("Brokers (-first +second):\n%s", diff)
		}
	})
}

func TestBrokersFollowTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "brokers")
	served := make(chan map[string]string, 10)
	stop := WatchBrokers(file, time.Millisecond, func(brokers map[string]string) { served <- brokers }, slog.New(slog.DiscardHandler))
	if len(served) != 1 {
		t.Error("nothing was served before it returned")
	}
	expect := func(why string, want map[string]string) {
		t.Helper()
		select {
		case got := <-served:
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", why, diff)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing is served", why)
		}
	}
	write := func(text string) { // as a ConfigMap does: another file by the same name
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	expect("before there is a file", map[string]string{})
	write("a/b=c\n")
	expect("the file", map[string]string{"a/b": "c"})
	write("nonsense")
	write("a/b=c\nd/e=f\n")
	expect("after nonsense", map[string]string{"a/b": "c", "d/e": "f"})
	stop()
}

func TestBrokersAreListedAndReplaced(t *testing.T) {
	h := newHandler(t, &memory{}, roomy)
	get := func() string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, BrokersPath, nil))
		return w.Body.String()
	}
	if got := get(); got != "robofleet/fleet=memory\n" {
		t.Errorf("served %q, want the one Broker", got)
	}
	h.Serve(map[string]Topic{"robofleet/edge": &memory{}})
	if got := get(); got != "robofleet/edge=memory\n" {
		t.Errorf("served %q, want the other Broker", got)
	}
	if w := post(h, "/robofleet/fleet", binary(), "x"); w.Code != http.StatusNotFound {
		t.Errorf("the Broker that is gone answers %d, want 404", w.Code)
	}
	if w := post(h, "/robofleet/edge", binary(), "x"); w.Code != http.StatusAccepted {
		t.Errorf("the new Broker answers %d, want 202", w.Code)
	}
}
