package bigquery

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	bq "google.golang.org/api/bigquery/v2"
)

// maxRequestBytes bounds the body of a REST request.
const maxRequestBytes = 16 << 20

// api serves the REST API.
type api struct {
	catalog *catalog
	jobs    *jobs
}

// handler routes the API. The client library puts the paths below the endpoint that it is given, so both /bigquery/v2/projects/… and
// /projects/… are served.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(*http.Request) (any, error){
		"GET /projects":                                                  a.listProjects,
		"POST /projects/{project}/datasets":                              a.insertDataset,
		"GET /projects/{project}/datasets":                               a.listDatasets,
		"GET /projects/{project}/datasets/{dataset}":                     a.getDataset,
		"PATCH /projects/{project}/datasets/{dataset}":                   a.patchDataset,
		"PUT /projects/{project}/datasets/{dataset}":                     a.putDataset,
		"DELETE /projects/{project}/datasets/{dataset}":                  a.deleteDataset,
		"POST /projects/{project}/datasets/{dataset}/tables":             a.insertTable,
		"GET /projects/{project}/datasets/{dataset}/tables":              a.listTables,
		"GET /projects/{project}/datasets/{dataset}/tables/{table}":      a.getTable,
		"PATCH /projects/{project}/datasets/{dataset}/tables/{table}":    a.patchTable,
		"PUT /projects/{project}/datasets/{dataset}/tables/{table}":      a.putTable,
		"DELETE /projects/{project}/datasets/{dataset}/tables/{table}":   a.deleteTable,
		"GET /projects/{project}/datasets/{dataset}/tables/{table}/data": a.listRows,
		"POST /projects/{project}/queries":                               a.jobs.query,
		"GET /projects/{project}/queries/{job}":                          a.jobs.getQueryResults,
		"POST /projects/{project}/jobs":                                  a.jobs.insert,
		"GET /projects/{project}/jobs":                                   a.jobs.list,
		"GET /projects/{project}/jobs/{job}":                             a.jobs.getJob,
		"POST /projects/{project}/jobs/{job}/cancel":                     a.jobs.cancelJob,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, handle) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiError{http.StatusNotFound, "notFound", "Not found: the local BigQuery has no method " + r.Method + " " + r.URL.Path})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path, ok := strings.CutPrefix(r.URL.Path, "/bigquery/v2/"); ok {
			r2 := *r
			u := *r.URL
			u.Path, u.RawPath = "/"+path, ""
			r2.URL = &u
			r = &r2
		}
		mux.ServeHTTP(w, r)
	})
}

func (a *api) serve(w http.ResponseWriter, r *http.Request, handle func(*http.Request) (any, error)) {
	if p := r.PathValue("project"); p != "" && p != a.catalog.project {
		writeError(w, notFound("Project", "%s: the local BigQuery has the one project %s", p, a.catalog.project))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequestBytes)
	body, err := handle(r)
	if err != nil {
		writeError(w, err)
		return
	}
	if body == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusOK, body)
}

func (a *api) listProjects(*http.Request) (any, error) {
	p := a.catalog.project
	return &bq.ProjectList{Kind: "bigquery#projectList", TotalItems: 1, Projects: []*bq.ProjectListProjects{{
		Kind: "bigquery#project", Id: p, FriendlyName: p, ProjectReference: &bq.ProjectReference{ProjectId: p},
	}}}, nil
}

func (a *api) insertDataset(r *http.Request) (any, error) {
	var d bq.Dataset
	if err := decodeBody(r, &d); err != nil {
		return nil, err
	}
	return found(a.catalog.insertDataset(r.Context(), &d))
}

// found drops the typed nil that an error comes with.
func found[T any](v *T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (a *api) getDataset(r *http.Request) (any, error) {
	return found(a.catalog.dataset(r.PathValue("dataset")))
}

func (a *api) listDatasets(r *http.Request) (any, error) {
	page, token, err := listPage(r, a.catalog.listDatasets())
	if err != nil {
		return nil, err
	}
	list := &bq.DatasetList{Kind: "bigquery#datasetList", NextPageToken: token}
	for _, d := range page {
		list.Datasets = append(list.Datasets, &bq.DatasetListDatasets{Kind: "bigquery#dataset", Id: d.Id,
			DatasetReference: d.DatasetReference, FriendlyName: d.FriendlyName, Labels: d.Labels, Location: d.Location})
	}
	return list, nil
}

func (a *api) patchDataset(r *http.Request) (any, error) {
	return found(a.catalog.updateDataset(r.Context(), r.PathValue("dataset"), r.Header.Get("If-Match"), patch[bq.Dataset](r)))
}

func (a *api) putDataset(r *http.Request) (any, error) {
	return found(a.catalog.updateDataset(r.Context(), r.PathValue("dataset"), r.Header.Get("If-Match"), put[bq.Dataset](r)))
}

// patch returns the edit of a resource that merges the request's body into it: a null removes a field, and labels are merged one by one.
func patch[T any](r *http.Request) func(*T) (*T, error) {
	return func(old *T) (*T, error) {
		var changes map[string]json.RawMessage
		if err := decodeBody(r, &changes); err != nil {
			return nil, err
		}
		text, err := json.Marshal(old)
		if err != nil {
			return nil, fmt.Errorf("encode the resource: %w", err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			return nil, fmt.Errorf("read the resource: %w", err)
		}
		if err := merge(fields, changes, true); err != nil {
			return nil, err
		}
		text, err = json.Marshal(fields)
		if err != nil {
			return nil, fmt.Errorf("encode the patched resource: %w", err)
		}
		out := new(T)
		if err := json.Unmarshal(text, out); err != nil {
			return nil, invalid("the patch does not fit the resource: %v", err)
		}
		return out, nil
	}
}

func merge(fields, changes map[string]json.RawMessage, top bool) error {
	for name, value := range changes {
		switch {
		case bytes.Equal(bytes.TrimSpace(value), []byte("null")):
			delete(fields, name)
		case top && name == "labels":
			var old, now map[string]json.RawMessage
			if err := json.Unmarshal(value, &now); err != nil {
				return invalid("labels must be an object: %v", err)
			}
			if fields[name] != nil {
				if err := json.Unmarshal(fields[name], &old); err != nil {
					return fmt.Errorf("read the labels: %w", err)
				}
			}
			if old == nil {
				old = map[string]json.RawMessage{}
			}
			if err := merge(old, now, false); err != nil {
				return err
			}
			text, err := json.Marshal(old)
			if err != nil {
				return fmt.Errorf("encode the labels: %w", err)
			}
			fields[name] = text
		default:
			fields[name] = value
		}
	}
	return nil
}

// put returns the edit of a resource that replaces it by the request's body.
func put[T any](r *http.Request) func(*T) (*T, error) {
	return func(*T) (*T, error) {
		out := new(T)
		return out, decodeBody(r, out)
	}
}

func (a *api) deleteDataset(r *http.Request) (any, error) {
	contents := strings.EqualFold(r.URL.Query().Get("deleteContents"), "true")
	return nil, a.catalog.deleteDataset(r.Context(), r.PathValue("dataset"), contents)
}

func (a *api) insertTable(r *http.Request) (any, error) {
	var t bq.Table
	if err := decodeBody(r, &t); err != nil {
		return nil, err
	}
	return found(a.catalog.insertTable(r.Context(), r.PathValue("dataset"), &t))
}

func (a *api) listTables(r *http.Request) (any, error) {
	all, err := a.catalog.listTables(r.PathValue("dataset"))
	if err != nil {
		return nil, err
	}
	page, token, err := listPage(r, all)
	if err != nil {
		return nil, err
	}
	list := &bq.TableList{Kind: "bigquery#tableList", NextPageToken: token, TotalItems: int64(len(all))}
	for _, t := range page {
		item := &bq.TableListTables{Kind: "bigquery#table", Id: t.Id, TableReference: t.TableReference, Type: t.Type, Labels: t.Labels,
			CreationTime: t.CreationTime, FriendlyName: t.FriendlyName, TimePartitioning: t.TimePartitioning, Clustering: t.Clustering}
		if t.View != nil {
			item.View = &bq.TableListTablesView{UseLegacySql: false}
		}
		list.Tables = append(list.Tables, item)
	}
	return list, nil
}

// getTable adds the number of rows to the stored resource.
func (a *api) getTable(r *http.Request) (any, error) {
	t, err := a.catalog.table(r.PathValue("dataset"), r.PathValue("table"))
	if err != nil {
		return nil, err
	}
	if t.isView() {
		return t.resource, nil
	}
	out := *t.resource
	n, err := a.countRows(r.Context(), t)
	if err != nil {
		return nil, err
	}
	out.NumRows = uint64(n)
	out.ForceSendFields = append(out.ForceSendFields, "NumRows")
	return &out, nil
}

func (a *api) countRows(ctx context.Context, t *table) (int64, error) {
	conn, err := a.catalog.db.acquire()
	if err != nil {
		return 0, err
	}
	defer a.catalog.db.release(conn)
	values, err := conn.strings(ctx, "SELECT CAST(count(*) AS VARCHAR) FROM "+t.name)
	if err != nil {
		return 0, fmt.Errorf("count the rows of %s: %w", t.resource.Id, err)
	}
	return strconv.ParseInt(values[0][0], 10, 64)
}

func (a *api) patchTable(r *http.Request) (any, error) {
	return found(a.catalog.updateTable(r.Context(), r.PathValue("dataset"), r.PathValue("table"), r.Header.Get("If-Match"), patch[bq.Table](r)))
}

func (a *api) putTable(r *http.Request) (any, error) {
	return found(a.catalog.updateTable(r.Context(), r.PathValue("dataset"), r.PathValue("table"), r.Header.Get("If-Match"), put[bq.Table](r)))
}

func (a *api) deleteTable(r *http.Request) (any, error) {
	return nil, a.catalog.deleteTable(r.Context(), r.PathValue("dataset"), r.PathValue("table"))
}

// listRows serves tabledata.list: the rows in the order of their insertion.
func (a *api) listRows(r *http.Request) (any, error) {
	t, err := a.catalog.table(r.PathValue("dataset"), r.PathValue("table"))
	if err != nil {
		return nil, err
	}
	if t.isView() {
		return nil, invalid("Cannot list a table of type VIEW.")
	}
	p, err := pageParams(r)
	if err != nil {
		return nil, err
	}
	total, err := a.countRows(r.Context(), t)
	if err != nil {
		return nil, err
	}
	const maxRows = 50_000 // of one page
	count := maxRows
	if p.maxResults >= 0 {
		count = min(count, p.maxResults)
	}
	columns, fields := selectedColumns(t.resource.Schema.Fields, r.URL.Query().Get("selectedFields"))
	conn, err := a.catalog.db.acquire()
	if err != nil {
		return nil, err
	}
	defer a.catalog.db.release(conn)
	res, err := conn.query(r.Context(), fmt.Sprintf("SELECT %s FROM %s LIMIT %d OFFSET %d", columns, t.name, count, p.start))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.resource.Id, err)
	}
	defer res.close()
	all, err := res.readAll(fields, maxResultBytes)
	if err != nil {
		return nil, err
	}
	start := p.start
	p.start = 0
	page, _, err := all.page(p, fields)
	if err != nil {
		return nil, err
	}
	var out struct {
		Kind      string            `json:"kind"`
		ETag      string            `json:"etag"`
		TotalRows string            `json:"totalRows"`
		PageToken string            `json:"pageToken,omitempty"`
		Rows      []json.RawMessage `json:"rows,omitempty"`
	}
	out.Kind, out.ETag, out.TotalRows, out.Rows = "bigquery#tableDataList", t.resource.Etag, strconv.FormatInt(total, 10), page
	if next := start + len(page); len(page) > 0 && int64(next) < total {
		out.PageToken = strconv.Itoa(next)
	}
	return out, nil
}

// selectedColumns is the select list of the top-level fields named in selected (comma-separated; empty: all), in the schema's order.
func selectedColumns(fields []*bq.TableFieldSchema, selected string) (string, []*bq.TableFieldSchema) {
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(selected, ",") {
		wanted[strings.ToLower(name)] = true
	}
	var names []string
	var out []*bq.TableFieldSchema
	for _, f := range fields {
		if selected == "" || wanted[strings.ToLower(f.Name)] {
			names = append(names, quoteName(f.Name))
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return selectedColumns(fields, "")
	}
	return strings.Join(names, ", "), out
}
