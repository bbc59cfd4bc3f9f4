package hotwrite

import (
	"context"
	"fmt"
	"sync"
)

// Warehouse is where rows go.
type Warehouse interface {
	// Append writes rows, each a protocol buffer message as Descriptor describes it, and returns nil once they are durable
	// and visible to queries. A *RowsError says that none was written, and which of them never will be. After any other
	// error they may or may not have been written, and may be appended again. To append no rows is a success.
	Append(ctx context.Context, rows [][]byte) error
}

// RowsError names the rows that the warehouse refuses for what is in them.
type RowsError struct {
	Rows map[int]string // index of the row, and what is wrong with it
}

func (e *RowsError) Error() string {
	for i, message := range e.Rows {
		return fmt.Sprintf("%d rows refused, row %d: %s", len(e.Rows), i, message)
	}
	return "rows refused"
}

// Memory is a Warehouse in memory, for tests and benchmarks.
type Memory struct {
	// Refuse says what is wrong with a row, or "". Nil refuses none.
	Refuse func(row []byte) string

	mu   sync.Mutex
	rows [][]byte
}

// Append implements Warehouse.
func (m *Memory) Append(ctx context.Context, rows [][]byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.Refuse != nil {
		refused := make(map[int]string)
		for i, row := range rows {
			if message := m.Refuse(row); message != "" {
				refused[i] = message
			}
		}
		if len(refused) > 0 {
			return &RowsError{Rows: refused}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, row := range rows {
		m.rows = append(m.rows, append([]byte(nil), row...))
	}
	return nil
}

// Rows returns the rows appended so far.
func (m *Memory) Rows() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([][]byte(nil), m.rows...)
}
