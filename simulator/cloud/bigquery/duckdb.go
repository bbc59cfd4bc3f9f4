package bigquery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	duckdb "github.com/duckdb/duckdb-go/v2/mapping"
)

// database is one open DuckDB database and its idle connections.
//
// It uses DuckDB's C API (package mapping) rather than database/sql: rows are appended and results are read column by column, straight
// from DuckDB's vectors, which is what makes appending cost about a microsecond per row; and JSON, nested types and their order survive.
type database struct {
	handle duckdb.Database

	mu     sync.Mutex
	idle   []*connection
	open   sync.WaitGroup // connections handed out
	closed bool
}

// errClosed is the error of a database used after close.
var errClosed = errors.New("the database is closed")

// engineError is an error that DuckDB reported. Its text is DuckDB's.
type engineError struct {
	kind duckdb.ErrorType
	text string
}

func (e *engineError) Error() string { return e.text }

// openDatabase opens the database file at path, or a new one in memory when path is empty.
func openDatabase(path string, settings map[string]string) (*database, error) {
	var config duckdb.Config
	if duckdb.CreateConfig(&config) == duckdb.StateError {
		return nil, errors.New("allocate DuckDB's configuration")
	}
	defer duckdb.DestroyConfig(&config)
	for name, value := range settings {
		if duckdb.SetConfig(config, name, value) == duckdb.StateError {
			return nil, fmt.Errorf("set DuckDB's %s to %q: not accepted", name, value)
		}
	}
	d := &database{}
	var text string
	if duckdb.OpenExt(path, &d.handle, config, &text) == duckdb.StateError {
		return nil, &engineError{text: text}
	}
	return d, nil
}

// acquire returns a connection of its own to the caller, who must release it.
func (d *database) acquire() (*connection, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	if n := len(d.idle); n > 0 {
		c := d.idle[n-1]
		d.idle = d.idle[:n-1]
		d.open.Add(1)
		return c, nil
	}
	c := &connection{}
	if duckdb.Connect(d.handle, &c.handle) == duckdb.StateError {
		return nil, errors.New("connect to DuckDB")
	}
	d.open.Add(1)
	return c, nil
}

func (d *database) release(c *connection) {
	d.mu.Lock()
	d.idle = append(d.idle, c)
	d.mu.Unlock()
	d.open.Done()
}

// close waits for the connections in use, writes a checkpoint and closes the database.
func (d *database) close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	d.open.Wait()

	var err error
	c := &connection{}
	if duckdb.Connect(d.handle, &c.handle) == duckdb.StateError {
		err = errors.New("connect to DuckDB for the last checkpoint")
	} else {
		err = c.exec(context.Background(), "CHECKPOINT")
		d.idle = append(d.idle, c)
	}
	for _, c := range d.idle {
		duckdb.Disconnect(&c.handle)
	}
	duckdb.Close(&d.handle)
	return err
}

// connection runs one statement at a time.
type connection struct {
	handle duckdb.Connection
}

// statement is a prepared statement. It must be closed.
type statement struct {
	connection *connection
	handle     duckdb.PreparedStatement
}

// prepare parses and binds text, which must be exactly one statement.
func (c *connection) prepare(text string) (*statement, error) {
	var parsed duckdb.ExtractedStatements
	count := duckdb.ExtractStatements(c.handle, text, &parsed)
	defer duckdb.DestroyExtracted(&parsed)
	switch {
	case count == 0:
		if message := duckdb.ExtractStatementsError(parsed); message != "" {
			return nil, &engineError{kind: duckdb.ErrorTypeParser, text: message}
		}
		return nil, &engineError{kind: duckdb.ErrorTypeParser, text: "the query is empty"}
	case count > 1:
		return nil, &engineError{kind: duckdb.ErrorTypeParser, text: "scripts of several statements are not supported"}
	}
	s := &statement{connection: c}
	if duckdb.PrepareExtractedStatement(c.handle, parsed, 0, &s.handle) == duckdb.StateError {
		err := &engineError{kind: duckdb.ErrorTypeBinder, text: duckdb.PrepareError(s.handle)}
		duckdb.DestroyPrepare(&s.handle)
		return nil, err
	}
	return s, nil
}

func (s *statement) close() { duckdb.DestroyPrepare(&s.handle) }

func (s *statement) kind() duckdb.StatementType { return duckdb.PreparedStatementType(s.handle) }

// run executes the statement. The result is complete in DuckDB's memory, and must be closed.
func (s *statement) run(ctx context.Context) (*result, error) {
	defer s.connection.interruptWhenDone(ctx)()
	r := &result{}
	if duckdb.ExecutePrepared(s.handle, &r.handle) == duckdb.StateError {
		err := error(&engineError{kind: duckdb.ResultErrorType(&r.handle), text: duckdb.ResultError(&r.handle)})
		duckdb.DestroyResult(&r.handle)
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil, err
	}
	return r, nil
}

// interruptWhenDone interrupts what the connection does when ctx ends, again and again, because an interrupt that comes before the
// statement has begun is forgotten. The function it returns stops that, and returns only when no interrupt can hit the connection's
// next statement.
func (c *connection) interruptWhenDone(ctx context.Context) func() {
	finished, stopped := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		again := time.NewTicker(10 * time.Millisecond)
		defer again.Stop()
		for {
			duckdb.Interrupt(c.handle)
			select {
			case <-again.C:
			case <-finished:
				return
			}
		}
	})
	return func() {
		close(finished)
		if !stop() {
			<-stopped
		}
	}
}

// query runs one statement and returns its result, which must be closed.
func (c *connection) query(ctx context.Context, text string) (*result, error) {
	s, err := c.prepare(text)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.run(ctx)
}

// exec runs one statement for its effect.
func (c *connection) exec(ctx context.Context, text string) error {
	r, err := c.query(ctx, text)
	if err != nil {
		return err
	}
	r.close()
	return nil
}

// transact runs do in a transaction: all of it becomes durable and visible, or none.
func (c *connection) transact(ctx context.Context, do func() error) error {
	if err := c.exec(ctx, "BEGIN TRANSACTION"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := do()
	if err == nil {
		// A commit is never interrupted: the caller must learn what became of it.
		if err = c.exec(context.WithoutCancel(ctx), "COMMIT"); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// A transaction that a failure has already ended cannot be rolled back; the failure is what matters.
	_ = c.exec(context.WithoutCancel(ctx), "ROLLBACK")
	return err
}

// result is the complete result of a statement.
type result struct {
	handle duckdb.Result
}

func (r *result) close() { duckdb.DestroyResult(&r.handle) }

// changed is the number of rows that an INSERT, UPDATE, DELETE or MERGE changed.
func (r *result) changed() int64 { return int64(duckdb.RowsChanged(&r.handle)) }
