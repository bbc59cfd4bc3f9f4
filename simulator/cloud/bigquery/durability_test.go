package bigquery_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/bigquery/storage/managedwriter"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	local "github.com/robofleet/robofleet/simulator/cloud/bigquery"
)

// childDir is the environment variable that turns the test binary into a server on that folder, to be killed.
const childDir = "BIGQUERY_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(dir string) error {
	server, err := local.Start(context.Background(), local.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	fmt.Println(server.RESTEndpoint(), server.GRPCAddr())
	select {}
}

func TestRowsThatWereAcknowledgedSurviveKill(t *testing.T) {
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), childDir+"="+dir)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	rest, grpcAddr, _ := strings.Cut(strings.TrimSpace(line), " ")
	c, wc := clientAt(t, rest), writeClientAt(t, grpcAddr)
	createTable(t, c, "fleet", "readings", readings)
	if err := c.Dataset("fleet").Table("view").Create(t.Context(), &bigquery.TableMetadata{ViewQuery: "SELECT event_id FROM fleet.readings"}); err != nil {
		t.Fatal(err)
	}
	m, d := descriptorOf(t, readings)
	stream := openStream(t, wc, "fleet", "readings", d)

	// The server is killed while appends are under way. What was acknowledged by then must be there afterwards.
	acknowledged := 0
	for i := 0; ; i++ {
		result, err := stream.AppendRows(t.Context(), encode(t, m, map[string]any{"event_id": fmt.Sprint(i)}))
		if err != nil {
			break
		}
		if i == 100 {
			if err := command.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait() // says that it was killed
			break
		}
		if _, err := result.GetResult(t.Context()); err != nil {
			t.Fatal(err)
		}
		acknowledged++
	}

	c = client(t, startIn(t, dir))
	got := query(t, c, "SELECT COUNT(*), COUNT(DISTINCT event_id) FROM fleet.view")[0]
	if n := got[0].(int64); n < int64(acknowledged) || n > int64(acknowledged)+1 || got[1] != got[0] {
		t.Errorf("%d rows, %d distinct, of %d acknowledged", got[0], got[1], acknowledged)
	}
	md, err := c.Dataset("fleet").Table("readings").Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(readings, md.Schema); diff != "" {
		t.Errorf("schema (-want +got):\n%s", diff)
	}
}

func TestDataSurvivesCloseAndStart(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		server, err := local.Start(t.Context(), local.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		c := client(t, server)
		if round == 0 {
			createTable(t, c, "bigquery", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}}) // a dataset named like the file
		}
		query(t, c, "INSERT bigquery.t (a) VALUES (1)")
		if got := text(query(t, c, "SELECT COUNT(*) FROM bigquery.t")); got[0] != fmt.Sprint(round+1) {
			t.Errorf("round %d: %s rows", round, got[0])
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if err := server.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "bigquery.duckdb.wal")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the log is left after close: %v", err)
		}
	}
}

func TestStartFailsWithOneLineThatNamesTheFile(t *testing.T) {
	t.Run("corrupt", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "bigquery.duckdb"), []byte(strings.Repeat("garbage ", 2000)), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := local.Start(t.Context(), local.Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "bigquery.duckdb") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("in use by another process", func(t *testing.T) {
		dir := t.TempDir()
		command := exec.CommandContext(t.Context(), os.Args[0])
		command.Env = append(os.Environ(), childDir+"="+dir)
		out, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = command.Process.Kill() // it may have ended with the test's context
			_ = command.Wait()
		})
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		_, err = local.Start(t.Context(), local.Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "in use") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("port taken", func(t *testing.T) {
		first := start(t)
		_, err := local.Start(t.Context(), local.Config{GRPCAddr: first.GRPCAddr()})
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
	})
}

func TestWritersAndReadersDoNotDisturbEachOther(t *testing.T) {
	server := startIn(t, t.TempDir())
	c := client(t, server)
	schema := bigquery.Schema{{Name: "writer", Type: bigquery.IntegerFieldType}, {Name: "seq", Type: bigquery.IntegerFieldType}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	wc := writeClient(t, server)
	const writers, appends, size = 4, 20, 100
	var group sync.WaitGroup
	for w := range writers {
		stream := openStream(t, wc, "d", "t", d)
		group.Go(func() {
			var results []*managedwriter.AppendResult
			for i := range appends {
				var rows []map[string]any
				for j := range size {
					rows = append(rows, map[string]any{"writer": int64(w), "seq": int64(i*size + j)})
				}
				result, err := stream.AppendRows(t.Context(), encode(t, m, rows...))
				if err != nil {
					t.Error(err)
					return
				}
				results = append(results, result)
			}
			for _, r := range results {
				if _, err := r.GetResult(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	for range 2 { // readers
		group.Go(func() {
			for {
				rows, err := tryQuery(t.Context(), c, "SELECT COUNT(*), COUNT(DISTINCT writer * 1000000 + seq) FROM d.t")
				if err != nil || rows[0][0] != rows[0][1] || rows[0][0].(int64)%size != 0 {
					t.Errorf("a query saw %v, %v: want whole requests", rows, err)
					return
				}
				if rows[0][0] == int64(writers*appends*size) {
					return
				}
			}
		})
	}
	<-done
}

func TestRequestsOfOneConnectionKeepTheirOrder(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "seq", Type: bigquery.IntegerFieldType}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	stream := openStream(t, writeClient(t, server), "d", "t", d)
	var results []*managedwriter.AppendResult
	for i := range 200 {
		result, err := stream.AppendRows(t.Context(), encode(t, m, map[string]any{"seq": int64(i)}))
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, result)
	}
	for _, r := range results {
		if _, err := r.GetResult(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := readAll(c.Dataset("d").Table("t").Read(t.Context()))
	if err != nil || len(rows) != 200 {
		t.Fatal(len(rows), err)
	}
	for i, row := range rows {
		if row[0] != int64(i) {
			t.Fatalf("row %d has seq %v", i, row[0])
		}
	}
}

func TestCommittedStreamRefusesOffsetsItDoesNotExpect(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "seq", Type: bigquery.IntegerFieldType}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	stream := openStream(t, writeClient(t, server), "d", "t", d, managedwriter.WithType(managedwriter.CommittedStream))
	rows := encode(t, m, map[string]any{"seq": int64(1)}, map[string]any{"seq": int64(2)})
	for _, step := range []struct {
		offset int64
		want   codes.Code
	}{{0, codes.OK}, {0, codes.AlreadyExists}, {5, codes.OutOfRange}, {2, codes.OK}} {
		result, err := stream.AppendRows(t.Context(), rows, managedwriter.WithOffset(step.offset))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := result.GetResult(t.Context()); status.Code(err) != step.want {
			t.Errorf("offset %d: got %v, want %v", step.offset, err, step.want)
		}
	}
	if n, err := stream.Finalize(t.Context()); err != nil || n != 4 {
		t.Errorf("finalize: %d rows, %v", n, err)
	}
	if got := text(query(t, c, "SELECT COUNT(*) FROM d.t")); got[0] != "4" {
		t.Errorf("%s rows", got[0])
	}
}

func TestRequestsThatCannotBeWrittenAreRefused(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "s", Type: bigquery.StringFieldType}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	wc := writeClient(t, server)
	get := func(stream *managedwriter.ManagedStream, rows [][]byte) error {
		result, err := stream.AppendRows(t.Context(), rows)
		if err != nil {
			return err
		}
		_, err = result.GetResult(t.Context())
		return err
	}
	row := encode(t, m, map[string]any{"s": strings.Repeat("x", 1<<20)})[0]
	large := make([][]byte, 11)
	for i := range large {
		large[i] = row
	}
	stream := openStream(t, wc, "d", "t", d)
	if err := get(stream, large); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "too large") {
		t.Errorf("11 MB: got %v", err)
	}
	if err := get(stream, large[:9]); err != nil {
		t.Errorf("9 MB: %v", err)
	}
	if err := get(stream, [][]byte{{0xff}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a row that is no message: got %v", err)
	}
	if err := get(stream, encode(t, m, map[string]any{"s": "ok"})); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	other, wrong := descriptorOf(t, bigquery.Schema{{Name: "s", Type: bigquery.IntegerFieldType}})
	if err := get(openStream(t, wc, "d", "t", wrong), encode(t, other, map[string]any{"s": int64(1)})); status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(err.Error(), "mismatched") {
		t.Errorf("wrong type: got %v", err)
	}
	if _, err := wc.NewManagedStream(t.Context(), managedwriter.WithDestinationTable(managedwriter.TableParentFromParts(project, "d", "none")),
		managedwriter.WithType(managedwriter.DefaultStream), managedwriter.WithSchemaDescriptor(d)); status.Code(err) != codes.NotFound {
		t.Errorf("missing table: got %v", err)
	}
}

func TestInjectedFaultsHappenAndTheClientRecovers(t *testing.T) {
	schema := bigquery.Schema{{Name: "seq", Type: bigquery.IntegerFieldType}}
	tests := []struct {
		fault      local.Fault
		duplicates bool
	}{
		{local.Fault{Kind: local.FaultUnavailable, Rate: 1, Limit: 2}, false},
		{local.Fault{Kind: local.FaultReset, Rate: 1, Limit: 2}, false},
		{local.Fault{Kind: local.FaultResourceExhausted, Rate: 1, Limit: 2}, false},
		{local.Fault{Kind: local.FaultLostAnswer, Rate: 1, Limit: 2}, true},
		{local.Fault{Kind: local.FaultSlow, Rate: 1, Limit: 2, Delay: 10 * time.Millisecond}, false},
	}
	for _, test := range tests {
		t.Run(string(test.fault.Kind), func(t *testing.T) {
			t.Parallel()
			server := start(t)
			c := client(t, server)
			createTable(t, c, "d", "t", schema)
			m, d := descriptorOf(t, schema)
			stream := openStream(t, writeClient(t, server), "d", "t", d)
			server.Faults().Set(1, test.fault)
			appendAll(t, stream, encode(t, m, map[string]any{"seq": int64(1)}))
			if got := server.Faults().Injected()[test.fault.Kind]; got < 1 {
				t.Errorf("%d faults injected", got)
			}
			server.Faults().Set(1)
			appendAll(t, stream, encode(t, m, map[string]any{"seq": int64(2)}))
			rows := query(t, c, "SELECT COUNT(DISTINCT seq), COUNT(*) FROM d.t")[0]
			if rows[0] != int64(2) || (rows[1] != int64(2)) != test.duplicates {
				t.Errorf("%v distinct of %v rows", rows[0], rows[1])
			}
		})
	}
}

func TestInjectedRowErrorsHitTheRowsThatMatch(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "robot", Type: bigquery.StringFieldType}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	stream := openStream(t, writeClient(t, server), "d", "t", d)
	server.Faults().Set(1, local.Fault{Kind: local.FaultRowErrors, Rate: 1, Contains: "R-13"})
	appendAll(t, stream, encode(t, m, map[string]any{"robot": "R-1"}))
	result, err := stream.AppendRows(t.Context(), encode(t, m, map[string]any{"robot": "R-2"}, map[string]any{"robot": "R-13"}))
	if err != nil {
		t.Fatal(err)
	}
	response, _ := result.FullResponse(t.Context()) // its error says the same as the row errors
	if len(response.GetRowErrors()) != 1 || response.GetRowErrors()[0].GetIndex() != 1 {
		t.Errorf("row errors %v", response.GetRowErrors())
	}
	if got := text(query(t, c, "SELECT robot FROM d.t")); !cmp.Equal(got, []string{"R-1"}) {
		t.Errorf("rows %v", got)
	}
}

func TestFaultsDependOnTheSeedAlone(t *testing.T) {
	schema := bigquery.Schema{{Name: "seq", Type: bigquery.IntegerFieldType}}
	run := func(seed uint64) string {
		server := start(t)
		createTable(t, client(t, server), "d", "t", schema)
		m, d := descriptorOf(t, schema)
		stream := openStream(t, writeClient(t, server), "d", "t", d)
		server.Faults().Set(seed, local.Fault{Kind: local.FaultRowErrors, Rate: 0.5})
		var outcome strings.Builder
		for range 40 {
			result, err := stream.AppendRows(t.Context(), [][]byte{mustMarshal(t, message(m, map[string]any{"seq": int64(1)}))})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := result.GetResult(t.Context()); err != nil {
				outcome.WriteByte('x')
			} else {
				outcome.WriteByte('.')
			}
		}
		return outcome.String()
	}
	first := run(7)
	if again := run(7); again != first {
		t.Errorf("the same seed gave %s and %s", first, again)
	}
	if other := run(8); other == first {
		t.Errorf("another seed gave the same: %s", other)
	}
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
