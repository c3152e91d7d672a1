package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	gcsMaxError = 64 << 10 // of an error that is read
	gcsMaxWait  = 5 * time.Second
)

// gcsError is an answer that is no success.
type gcsError struct {
	status int
	text   string // of Google
	plain  string // of whoever it was
	reason string // of the first cause, https://cloud.google.com/storage/docs/json_api/v1/status-codes
	after  time.Duration
}

func (e *gcsError) Error() string { return fmt.Sprintf("%d %s: %s", e.status, e.reason, e.text) }

// readGCSError reads an error in Google's JSON, or in plain text as downloads
// answer.
func readGCSError(resp *http.Response) *gcsError {
	e := &gcsError{status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.after = min(time.Duration(min(s, 60))*time.Second, gcsMaxWait)
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, gcsMaxError)) // what came is all there is to show
	var found struct {
		Error struct {
			Message string `json:"message"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &found) != nil || found.Error.Message == "" {
		e.plain = string(body)
		return e
	}
	e.text = found.Error.Message
	if len(found.Error.Errors) > 0 {
		e.reason = found.Error.Errors[0].Reason
	}
	return e
}

// retriable reports whether the same request may be answered otherwise in a
// moment.
func retriable(err error) bool {
	if _, ok := errors.AsType[*credentialsError](err); ok || errors.Is(err, ErrTooLarge) {
		return false
	}
	e, ok := errors.AsType[*gcsError](err)
	return !ok || e.status == http.StatusRequestTimeout || e.status == http.StatusTooManyRequests || e.status >= http.StatusInternalServerError
}

func askedFor(err error) time.Duration {
	if e, ok := errors.AsType[*gcsError](err); ok {
		return e.after
	}
	return 0
}

// explain turns an error into one line for the operator.
func (d *gcsDriver) explain(err error) error {
	if err == nil || errors.Is(err, ErrTooLarge) {
		return err
	}
	if _, ok := errors.AsType[*credentialsError](err); ok {
		return d.explainCredentials(err)
	}
	e, ok := errors.AsType[*gcsError](err)
	if !ok {
		return peer{cmp.Or(d.base, d.endpoint, "Google Cloud Storage"), "endpoint", systemTrust}.explain(err)
	}
	f := d.explainStatus(e)
	f.cause = errors.Join(f.cause, err)
	return &responseError{f, e.status}
}

func (d *gcsDriver) explainStatus(e *gcsError) fault {
	switch {
	case e.status == http.StatusNotFound && strings.Contains(e.text+e.plain, "bucket does not exist"):
		return fault{message: fmt.Sprintf("bucket %s does not exist", d.bucket), hint: "create it, or check the name in the storage URL"}
	case e.status == http.StatusNotFound:
		return fault{message: fs.ErrNotExist.Error(), cause: fs.ErrNotExist}
	case e.status == http.StatusUnauthorized:
		return fault{
			message: fmt.Sprintf("the credentials for bucket %s are not accepted", d.bucket),
			hint:    "check GOOGLE_APPLICATION_CREDENTIALS, credentials in the storage URL and this machine's clock; an endpoint of Google's own needs credentials=" + defaultChain,
		}
	case strings.HasSuffix(strings.ToLower(e.reason), "ratelimitexceeded"), e.status == http.StatusTooManyRequests:
		return fault{message: fmt.Sprintf("bucket %s asks to slow down", d.bucket), hint: "edge tries again by itself"}
	case e.status == http.StatusServiceUnavailable:
		return fault{message: fmt.Sprintf("bucket %s is overloaded", d.bucket), hint: "edge tries again by itself"}
	case e.status == http.StatusForbidden:
		return fault{
			message: fmt.Sprintf("access to bucket %s is denied: %s", d.bucket, oneLine(e.text)),
			hint:    "grant roles/storage.objectUser on the bucket",
		}
	case e.status == http.StatusNotImplemented:
		return fault{message: fmt.Sprintf("the server of bucket %s lacks a feature", d.bucket), hint: "edge needs ifGenerationMatch"}
	}
	// Not what is no answer of Google's: proxies quote requests.
	return fault{message: fmt.Sprintf("bucket %s answered %d %s: %s", d.bucket, e.status, oneLine(e.reason), cmp.Or(oneLine(e.text), "not in Google's way"))}
}

func (d *gcsDriver) explainCredentials(err error) error {
	if f, ok := errors.AsType[*fault](err); ok {
		return f // it knows better
	}
	return &fault{
		fmt.Sprintf("no credentials for bucket %s: %s", d.bucket, oneLine(innermost(err).Error())),
		"set GOOGLE_APPLICATION_CREDENTIALS, add credentials=/path/of/key.json to the storage URL, or run with workload identity or a service account", err,
	}
}
