package bigquery

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	duckdb "github.com/duckdb/duckdb-go/v2/mapping"
	bq "google.golang.org/api/bigquery/v2"
)

const (
	// maxResultBytes bounds the result of one query, as it is kept for paging.
	maxResultBytes = 128 << 20
	// maxKeptBytes bounds the results of all finished jobs, maxKeptJobs their number; the oldest go first.
	maxKeptBytes = 2 * maxResultBytes
	maxKeptJobs  = 1000
	// maxPageBytes bounds one page of a result (BigQuery's own limit is 10 MB of a response's rows).
	maxPageBytes = 10 << 20
	// defaultWait is how long a call waits for a query when it does not say (BigQuery's default too).
	defaultWait = 10 * time.Second
)

// querySpec is what a query job is asked to do.
type querySpec struct {
	Query           string               `json:"query"`
	QueryParameters []*queryParameter    `json:"queryParameters,omitempty"`
	DefaultDataset  *bq.DatasetReference `json:"defaultDataset,omitempty"`
	UseLegacySQL    *bool                `json:"useLegacySql,omitempty"`
	dryRun          bool
}

// job is a query job. Its result fields may be read once done is closed.
type job struct {
	id      string
	spec    querySpec
	created time.Time
	cancel  context.CancelFunc
	done    chan struct{}

	ended         time.Time
	err           *apiError
	statementType string
	schema        []*bq.TableFieldSchema
	rows          *rows
	affected      int64 // rows changed by DML
}

func (j *job) isDone() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

func (j *job) isDML() bool { return j.statementType != "" && j.statementType != "SELECT" }

// jobs runs queries and keeps their results for a while.
type jobs struct {
	catalog *catalog
	ctx     context.Context // ends with the server

	mu      sync.Mutex
	byID    map[string]*job
	order   []*job // oldest first
	kept    int    // bytes of results
	running sync.WaitGroup
}

// start begins a query job. An empty id gets a random one.
func (js *jobs) start(id string, spec querySpec) (*job, error) {
	if spec.UseLegacySQL != nil && *spec.UseLegacySQL {
		return nil, invalid("legacy SQL is not supported by the local BigQuery: set useLegacySql to false")
	}
	ctx, cancel := context.WithCancel(js.ctx)
	j := &job{id: cmp.Or(id, "job_"+rand.Text()), spec: spec, created: time.Now(), cancel: cancel, done: make(chan struct{})}
	js.mu.Lock()
	defer js.mu.Unlock()
	if err := js.ctx.Err(); err != nil {
		cancel()
		return nil, errClosed
	}
	if js.byID[j.id] != nil {
		cancel()
		return nil, duplicate("Job", js.catalog.project+":"+j.id)
	}
	js.byID[j.id] = j
	js.order = append(js.order, j)
	js.running.Go(func() {
		defer cancel()
		if err := js.run(ctx, j); err != nil {
			j.err = asAPIError(err)
			if ctx.Err() != nil {
				j.err = &apiError{499, "stopped", "Job execution was cancelled"}
			}
		}
		j.ended = time.Now()
		js.finish(j)
	})
	return j, nil
}

// finish publishes the job's result and drops the oldest ones over the bounds.
func (js *jobs) finish(j *job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	close(j.done)
	if j.rows != nil {
		js.kept += len(j.rows.text)
	}
	for len(js.order) > 1 && (js.kept > maxKeptBytes || len(js.order) > maxKeptJobs) {
		oldest := js.order[0]
		if oldest == j || !oldest.isDone() {
			return
		}
		if oldest.rows != nil {
			js.kept -= len(oldest.rows.text)
		}
		delete(js.byID, oldest.id)
		js.order = js.order[1:]
	}
}

func (js *jobs) get(id string) (*job, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	j, ok := js.byID[id]
	if !ok {
		return nil, notFound("Job", "%s:%s", js.catalog.project, id)
	}
	return j, nil
}

// statementTypes are the statements that a query may be.
var statementTypes = map[duckdb.StatementType]string{
	duckdb.StatementTypeSelect: "SELECT",
	duckdb.StatementTypeInsert: "INSERT",
	duckdb.StatementTypeUpdate: "UPDATE",
	duckdb.StatementTypeDelete: "DELETE",
}

// run executes the job's query.
func (js *jobs) run(ctx context.Context, j *job) error {
	defaultDataset := ""
	if d := j.spec.DefaultDataset; d != nil {
		defaultDataset = d.DatasetId
	}
	text, err := js.catalog.translate(j.spec.Query, j.spec.QueryParameters, defaultDataset)
	if err != nil {
		return err
	}
	conn, err := js.catalog.db.acquire()
	if err != nil {
		return err
	}
	defer js.catalog.db.release(conn)
	s, err := conn.prepare(text)
	if err != nil {
		return queryError(err)
	}
	defer s.close()
	statementType, ok := statementTypes[s.kind()]
	if !ok {
		return invalidQuery("only SELECT, INSERT, UPDATE and DELETE are supported by the local BigQuery")
	}
	j.statementType = statementType
	if statementType == "SELECT" {
		if j.schema, err = s.schema(); err != nil {
			return invalidQuery("%v", err)
		}
	}
	if j.spec.dryRun {
		return nil
	}
	r, err := s.run(ctx)
	if err != nil {
		return queryError(err)
	}
	defer r.close()
	if statementType != "SELECT" {
		j.affected = r.changed()
		return nil
	}
	j.rows, err = r.readAll(j.schema, maxResultBytes)
	return err
}

// queryError gives DuckDB's refusal of a query its place: the query is at fault, unless DuckDB is out of something.
func queryError(err error) error {
	e, ok := errors.AsType[*engineError](err)
	if !ok {
		return err
	}
	switch e.kind {
	case duckdb.ErrorTypeOutOfMemory:
		return &apiError{http.StatusBadRequest, "resourcesExceeded", "Resources exceeded during query execution: " + e.text}
	case duckdb.ErrorTypeErrorIO, duckdb.ErrorTypeFatal, duckdb.ErrorTypeInternal:
		return &apiError{http.StatusInternalServerError, "backendError", e.text}
	case duckdb.ErrorTypeTransaction:
		return &apiError{http.StatusBadRequest, "rateLimitExceeded", "Could not serialize access to the table due to concurrent update: " + e.text}
	}
	return invalidQuery("%s", e.text)
}

// resource is the job as the API shows it.
func (js *jobs) resource(j *job) *bq.Job {
	project := js.catalog.project
	legacy := false
	out := &bq.Job{
		Kind:         "bigquery#job",
		Id:           project + ":" + js.catalog.location + "." + j.id,
		JobReference: &bq.JobReference{ProjectId: project, JobId: j.id, Location: js.catalog.location},
		Configuration: &bq.JobConfiguration{JobType: "QUERY", DryRun: j.spec.dryRun, Query: &bq.JobConfigurationQuery{
			Query: j.spec.Query, DefaultDataset: j.spec.DefaultDataset, UseLegacySql: &legacy,
		}},
		Status:     &bq.JobStatus{State: "RUNNING"},
		Statistics: &bq.JobStatistics{CreationTime: j.created.UnixMilli(), StartTime: j.created.UnixMilli()},
		UserEmail:  "local@robofleet.invalid",
	}
	if !j.isDone() {
		return out
	}
	out.Status.State = "DONE"
	out.Statistics.EndTime = j.ended.UnixMilli()
	if j.err != nil {
		out.Status.ErrorResult = j.err.proto()
		out.Status.Errors = []*bq.ErrorProto{j.err.proto()}
	}
	out.Statistics.Query = &bq.JobStatistics2{StatementType: j.statementType}
	if j.isDML() {
		out.Statistics.Query.NumDmlAffectedRows = j.affected
		out.Statistics.Query.ForceSendFields = []string{"NumDmlAffectedRows"}
	}
	if j.spec.dryRun {
		out.Statistics.Query.Schema = &bq.TableSchema{Fields: j.schema}
	}
	return out
}

// queryResponse is the answer of jobs.query and jobs.getQueryResults.
type queryResponse struct {
	Kind                string            `json:"kind"`
	Schema              *bq.TableSchema   `json:"schema,omitempty"`
	JobReference        *bq.JobReference  `json:"jobReference,omitempty"`
	JobComplete         bool              `json:"jobComplete"`
	TotalRows           string            `json:"totalRows,omitempty"`
	PageToken           string            `json:"pageToken,omitempty"`
	Rows                []json.RawMessage `json:"rows,omitempty"`
	TotalBytesProcessed string            `json:"totalBytesProcessed,omitempty"`
	NumDMLAffectedRows  string            `json:"numDmlAffectedRows,omitempty"`
	CacheHit            bool              `json:"cacheHit"`
}

// pageRequest says which rows of a result are wanted, and how.
type pageRequest struct {
	start      int
	maxResults int // negative: as many as fit
	int64Times bool
}

// page answers with the rows of a finished job.
func (js *jobs) page(kind string, j *job, p pageRequest) (*queryResponse, error) {
	out := &queryResponse{Kind: kind, JobReference: js.resource(j).JobReference}
	if !j.isDone() {
		return out, nil
	}
	if j.err != nil {
		return nil, j.err
	}
	out.JobComplete, out.TotalBytesProcessed = true, "0"
	out.Schema = &bq.TableSchema{Fields: j.schema}
	if j.isDML() {
		out.NumDMLAffectedRows = strconv.FormatInt(j.affected, 10)
	}
	if j.rows == nil {
		out.TotalRows = "0"
		return out, nil
	}
	out.TotalRows = strconv.Itoa(j.rows.len())
	var err error
	out.Rows, out.PageToken, err = j.rows.page(p, j.schema)
	return out, err
}

// page returns the wanted rows and the token of the next page.
func (r *rows) page(p pageRequest, schema []*bq.TableFieldSchema) (page []json.RawMessage, token string, err error) {
	from := min(max(p.start, 0), r.len())
	to := r.len()
	if p.maxResults >= 0 {
		to = min(to, from+p.maxResults)
	}
	begin := 0
	if from > 0 {
		begin = r.ends[from-1]
	}
	for i := from + 1; i < to; i++ { // at least one row per page
		if r.ends[i]-begin > maxPageBytes {
			to = i
			break
		}
	}
	page = r.slice(from, to)
	if !p.int64Times {
		for i := range page {
			if page[i], err = withFloatTimestamps(page[i], schema); err != nil {
				return nil, "", err
			}
		}
	}
	if to < r.len() && to > from {
		token = strconv.Itoa(to)
	}
	return page, token, nil
}

// formatOptions are the options of a result's format that matter here.
type formatOptions struct {
	UseInt64Timestamp bool `json:"useInt64Timestamp"`
}

// query serves jobs.query.
func (js *jobs) query(r *http.Request) (any, error) {
	var request struct {
		querySpec
		DryRun        bool          `json:"dryRun"`
		TimeoutMS     *int64        `json:"timeoutMs"`
		MaxResults    *int          `json:"maxResults"`
		FormatOptions formatOptions `json:"formatOptions"`
	}
	if err := decodeBody(r, &request); err != nil {
		return nil, err
	}
	request.dryRun = request.DryRun
	j, err := js.start("", request.querySpec)
	if err != nil {
		return nil, err
	}
	wait := defaultWait
	if request.TimeoutMS != nil {
		wait = time.Duration(*request.TimeoutMS) * time.Millisecond
	}
	waitFor(r.Context(), j.done, wait)
	p := pageRequest{maxResults: -1, int64Times: request.FormatOptions.UseInt64Timestamp}
	if request.MaxResults != nil {
		p.maxResults = *request.MaxResults
	}
	return js.page("bigquery#queryResponse", j, p)
}

// waitFor waits until done is closed, the context ends or the time is over.
func waitFor(ctx context.Context, done <-chan struct{}, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// insert serves jobs.insert, for query jobs. A dry run is complete in its answer, and its errors are the call's, as in BigQuery.
func (js *jobs) insert(r *http.Request) (any, error) {
	var request struct {
		JobReference  *bq.JobReference `json:"jobReference"`
		Configuration struct {
			DryRun bool       `json:"dryRun"`
			Query  *querySpec `json:"query"`
		} `json:"configuration"`
	}
	if err := decodeBody(r, &request); err != nil {
		return nil, err
	}
	if request.Configuration.Query == nil {
		return nil, &apiError{http.StatusNotImplemented, "notImplemented", "only query jobs are supported by the local BigQuery"}
	}
	spec := *request.Configuration.Query
	spec.dryRun = request.Configuration.DryRun
	id := ""
	if request.JobReference != nil {
		id = request.JobReference.JobId
	}
	j, err := js.start(id, spec)
	if err != nil {
		return nil, err
	}
	if spec.dryRun {
		waitFor(r.Context(), j.done, defaultWait)
		if j.isDone() && j.err != nil {
			return nil, j.err
		}
	}
	return js.resource(j), nil
}

// getQueryResults serves jobs.getQueryResults.
func (js *jobs) getQueryResults(r *http.Request) (any, error) {
	j, err := js.get(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	wait, err := intParam(q.Get("timeoutMs"), int(defaultWait/time.Millisecond))
	if err != nil {
		return nil, err
	}
	p, err := pageParams(r)
	if err != nil {
		return nil, err
	}
	waitFor(r.Context(), j.done, time.Duration(wait)*time.Millisecond)
	return js.page("bigquery#getQueryResultsResponse", j, p)
}

// pageParams reads the paging parameters of a call that lists rows.
func pageParams(r *http.Request) (pageRequest, error) {
	q := r.URL.Query()
	p := pageRequest{int64Times: strings.EqualFold(q.Get("formatOptions.useInt64Timestamp"), "true")}
	var err error
	if p.maxResults, err = intParam(q.Get("maxResults"), -1); err != nil {
		return p, err
	}
	p.start, err = intParam(cmp.Or(q.Get("pageToken"), q.Get("startIndex")), 0)
	return p, err
}

func intParam(s string, fallback int) (int, error) {
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, invalid("invalid value %q of a query parameter: expected a whole number", s)
	}
	return n, nil
}

// getJob serves jobs.get.
func (js *jobs) getJob(r *http.Request) (any, error) {
	j, err := js.get(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	return js.resource(j), nil
}

// cancelJob serves jobs.cancel.
func (js *jobs) cancelJob(r *http.Request) (any, error) {
	j, err := js.get(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	j.cancel()
	return &bq.JobCancelResponse{Kind: "bigquery#jobCancelResponse", Job: js.resource(j)}, nil
}

// list serves jobs.list, newest first.
func (js *jobs) list(r *http.Request) (any, error) {
	js.mu.Lock()
	all := append([]*job(nil), js.order...)
	js.mu.Unlock()
	items := make([]*bq.JobListJobs, 0, len(all))
	for i := len(all) - 1; i >= 0; i-- {
		j := js.resource(all[i])
		item := &bq.JobListJobs{Kind: j.Kind, Id: j.Id, JobReference: j.JobReference, Configuration: j.Configuration,
			Status: j.Status, State: j.Status.State, ErrorResult: j.Status.ErrorResult, Statistics: j.Statistics}
		items = append(items, item)
	}
	page, token, err := listPage(r, items)
	if err != nil {
		return nil, err
	}
	return &bq.JobList{Kind: "bigquery#jobList", Jobs: page, NextPageToken: token}, nil
}

// listPage returns the page of items that the request asks for, and the token of the next.
func listPage[T any](r *http.Request, items []T) ([]T, string, error) {
	start, err := intParam(r.URL.Query().Get("pageToken"), 0)
	if err != nil {
		return nil, "", err
	}
	count, err := intParam(r.URL.Query().Get("maxResults"), 1000)
	if err != nil {
		return nil, "", err
	}
	start = min(start, len(items))
	end := min(start+max(count, 1), len(items))
	token := ""
	if end < len(items) {
		token = strconv.Itoa(end)
	}
	return items[start:end], token, nil
}

// decodeBody reads a JSON body.
func decodeBody(r *http.Request, into any) error {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &apiError{http.StatusRequestEntityTooLarge, "uploadTooLarge", fmt.Sprintf("the request exceeds %d bytes", tooLarge.Limit)}
		}
		return &apiError{http.StatusBadRequest, "parseError", fmt.Sprintf("the request's body is not the expected JSON: %v", err)}
	}
	return nil
}
