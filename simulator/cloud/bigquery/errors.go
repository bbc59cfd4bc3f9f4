package bigquery

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	bq "google.golang.org/api/bigquery/v2"
)

// apiError is an error in the REST API's terms. The pairs of status and reason are those of BigQuery's documentation
// (https://cloud.google.com/bigquery/docs/error-messages), on which clients decide whether to retry.
type apiError struct {
	status  int
	reason  string
	message string
}

func (e *apiError) Error() string { return e.message }

// proto is the error as a job's status carries it.
func (e *apiError) proto() *bq.ErrorProto {
	return &bq.ErrorProto{Reason: e.reason, Message: e.message, Location: "query"}
}

func notFound(kind, format string, args ...any) *apiError {
	return &apiError{http.StatusNotFound, "notFound", "Not found: " + kind + " " + fmt.Sprintf(format, args...)}
}

func duplicate(kind, name string) *apiError {
	return &apiError{http.StatusConflict, "duplicate", "Already Exists: " + kind + " " + name}
}

func invalid(format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "invalid", fmt.Sprintf(format, args...)}
}

func invalidQuery(format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "invalidQuery", fmt.Sprintf(format, args...)}
}

// asAPIError gives any error its place in the API: what is not an apiError already is a fault of the server.
func asAPIError(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	if errors.Is(err, errTooLarge) {
		return &apiError{http.StatusForbidden, "responseTooLarge", err.Error()}
	}
	if errors.Is(err, errClosed) {
		return &apiError{http.StatusServiceUnavailable, "backendError", err.Error()}
	}
	return &apiError{http.StatusInternalServerError, "internalError", err.Error()}
}

// statusName is the canonical name of the code that error.status carries.
var statusName = map[int]string{
	http.StatusBadRequest:          "INVALID_ARGUMENT",
	http.StatusForbidden:           "PERMISSION_DENIED",
	http.StatusNotFound:            "NOT_FOUND",
	http.StatusConflict:            "ALREADY_EXISTS",
	http.StatusPreconditionFailed:  "FAILED_PRECONDITION",
	http.StatusInternalServerError: "INTERNAL",
	http.StatusNotImplemented:      "UNIMPLEMENTED",
	http.StatusServiceUnavailable:  "UNAVAILABLE",
}

func writeError(w http.ResponseWriter, err error) {
	e := asAPIError(err)
	type item struct {
		Message string `json:"message"`
		Domain  string `json:"domain"`
		Reason  string `json:"reason"`
	}
	var body struct {
		Error struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
			Errors  []item `json:"errors"`
			Status  string `json:"status"`
		} `json:"error"`
	}
	body.Error.Code, body.Error.Message, body.Error.Status = e.status, e.message, statusName[e.status]
	body.Error.Errors = []item{{e.message, "global", e.reason}}
	writeJSON(w, e.status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that has gone needs no answer
}
