package acmelab

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

const (
	gcsPageSize  = 1000    // the default of Google, and its most
	gcsMaxUpload = 8 << 20 // bytes
	gcsMaxName   = 1024    // bytes
)

// GCSOptions are the settings of a GCS server.
type GCSOptions struct {
	Addr     string   // to listen on; "" is a free port of 127.0.0.1
	Buckets  []string // that exist
	PageSize int      // of listings, at most; 0 is Google's
	Token    string   // that requests must bear; "" lets everybody in
}

// GCS is a strict fake of the JSON API of Google Cloud Storage, in memory: the
// requests that a certificate store makes and no others. Objects are inserted
// by media uploads, read, described, listed in pages and deleted; the only
// precondition is ifGenerationMatch, and it is atomic. A parameter, field or
// path that it does not know is refused with 400 and not ignored, as are
// parameters given twice. Generations are the microseconds of the write, as at
// Google, and never repeat.
//
// https://cloud.google.com/storage/docs/json_api/v1
type GCS struct {
	Endpoint string // URL of the server

	scripted
	pageSize int
	token    string

	state   sync.Mutex
	last    int64 // generation
	buckets map[string]map[string]gcsObject
}

type gcsObject struct {
	content    []byte
	generation int64
	updated    time.Time
}

// StartGCS runs a GCS server. The caller must Close it.
func StartGCS(o GCSOptions) (*GCS, error) {
	s := &GCS{pageSize: cmp.Or(o.PageSize, gcsPageSize), token: o.Token, buckets: map[string]map[string]gcsObject{}}
	for _, b := range o.Buckets {
		s.buckets[b] = map[string]gcsObject{}
	}
	s.scripted = scripted{inner: http.HandlerFunc(s.serve), label: labelGCS, refuse: refuseGCS}
	if err := s.listen(o.Addr); err != nil {
		return nil, err
	}
	s.Endpoint = s.front.url
	return s, nil
}

// NewGCS is StartGCS for a test.
func NewGCS(tb testing.TB, buckets ...string) *GCS {
	tb.Helper()
	s, err := StartGCS(GCSOptions{Buckets: buckets})
	return started(tb, s, err)
}

// StoreURL is the URL of a certificate store in bucket, below prefix.
func (s *GCS) StoreURL(bucket, prefix string) string {
	u := url.URL{Scheme: "gs", Host: bucket, Path: "/" + prefix, RawQuery: url.Values{"endpoint": {s.Endpoint}}.Encode()}
	return u.String()
}

// labelGCS names requests as Requests of S3 does: "GET /bucket/name", "POST
// /bucket/name", "GET /bucket?list".
func labelGCS(r *http.Request) string {
	bucket, object, isObject := gcsPath(r.URL)
	switch {
	case bucket == "":
		return r.Method + " " + r.URL.Path
	case isObject:
		return r.Method + " /" + bucket + "/" + object
	case r.Method == http.MethodPost:
		return r.Method + " /" + bucket + "/" + r.URL.Query().Get("name")
	}
	return r.Method + " /" + bucket + "?list"
}

// gcsPath takes the path of an object, or of the objects of a bucket, apart. A
// bucket of "" is another path. The name of an object is one segment, its
// slashes encoded.
func gcsPath(u *url.URL) (bucket, object string, isObject bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(u.EscapedPath(), "/upload"), "/storage/v1/b/")
	if !ok {
		return "", "", false
	}
	parts := strings.Split(rest, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[1] != "o" {
		return "", "", false
	}
	if len(parts) == 3 {
		name, err := url.PathUnescape(parts[2])
		if err != nil || name == "" {
			return "", "", false
		}
		object, isObject = name, true
	}
	return parts[0], object, isObject
}

// gcsCall is one request to a bucket that exists, with state locked.
type gcsCall struct {
	w              http.ResponseWriter
	r              *http.Request
	query          url.Values
	bucket, object string
	objects        map[string]gcsObject
}

func (s *GCS) serve(w http.ResponseWriter, r *http.Request) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		answerGCS(w, http.StatusBadRequest, "invalid", "Invalid query.")
		return
	}
	if s.token != "" && r.Header.Get("Authorization") != "Bearer "+s.token {
		answerGCS(w, http.StatusUnauthorized, "authError", "Invalid Credentials")
		return
	}
	bucket, object, isObject := gcsPath(r.URL)
	if bucket == "" {
		answerGCS(w, http.StatusNotFound, "notFound", "Not Found")
		return
	}
	handle, known := s.method(r, isObject)
	if handle == nil {
		answerGCS(w, http.StatusMethodNotAllowed, "methodNotAllowed", "Method not allowed.")
		return
	}
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) != 1 {
			answerGCS(w, http.StatusBadRequest, "invalidParameter", fmt.Sprintf("Invalid parameter: %s", name))
			return
		}
	}
	s.state.Lock()
	defer s.state.Unlock()
	objects, ok := s.buckets[bucket]
	if !ok {
		answerGCS(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	handle(gcsCall{w: w, r: r, query: query, bucket: bucket, object: object, objects: objects})
}

// method returns what handles r, and the parameters that it knows; nil is
// nothing.
func (s *GCS) method(r *http.Request, isObject bool) (handle func(gcsCall), known []string) {
	verb := r.Method
	if strings.HasPrefix(r.URL.Path, "/upload/") {
		verb = "upload by " + verb
	}
	switch {
	case verb == "upload by POST" && !isObject:
		return s.insert, []string{"uploadType", "name", "ifGenerationMatch", "fields"}
	case verb == http.MethodGet && !isObject:
		return s.list, []string{"prefix", "pageToken", "maxResults", "fields"}
	case verb == http.MethodGet:
		return gcsCall.get, []string{"alt", "fields"}
	case verb == http.MethodDelete && isObject:
		return gcsCall.remove, []string{"ifGenerationMatch"}
	}
	return nil, nil
}

// insert is https://cloud.google.com/storage/docs/json_api/v1/objects/insert
// with uploadType=media.
func (s *GCS) insert(c gcsCall) {
	w, r, query, objects := c.w, c.r, c.query, c.objects
	name := query.Get("name")
	switch {
	case query.Get("uploadType") != "media":
		answerGCS(w, http.StatusBadRequest, "invalid", "Only media uploads are known here.")
		return
	case name == "" || len(name) > gcsMaxName || !utf8.ValidString(name) || strings.ContainsAny(name, "\r\n") || name == "." || name == "..":
		answerGCS(w, http.StatusBadRequest, "invalid", "Invalid object name.")
		return
	case r.Header.Get("Content-Type") == "":
		answerGCS(w, http.StatusBadRequest, "badContent", "Content-Type is missing.")
		return
	}
	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, gcsMaxUpload))
	if err != nil {
		answerGCS(w, http.StatusBadRequest, "badContent", "The upload ended early.")
		return
	}
	found := objects[name]
	if !holdsGCS(w, query, found.generation) {
		return
	}
	now := time.Now().UTC()
	s.last = max(s.last+1, now.UnixMicro())
	o := gcsObject{content: content, generation: s.last, updated: now}
	fields, ok := gcsFields(w, query, o.resource(c.bucket, name))
	if !ok {
		return
	}
	objects[name] = o
	writeGCS(w, fields)
}

// holdsGCS checks ifGenerationMatch, where 0 is "there is none", as generation
// is of what there is none of. When it does not hold it answers.
func holdsGCS(w http.ResponseWriter, query url.Values, generation int64) bool {
	if !query.Has("ifGenerationMatch") {
		return true
	}
	want, err := strconv.ParseInt(query.Get("ifGenerationMatch"), 10, 64)
	switch {
	case err != nil:
		answerGCS(w, http.StatusBadRequest, "invalid", "Invalid value for ifGenerationMatch.")
	case want != generation:
		answerGCS(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
	}
	return err == nil && want == generation
}

func (c gcsCall) get() {
	w, query, bucket, name := c.w, c.query, c.bucket, c.object
	o, ok := c.objects[name]
	media := query.Get("alt") == "media"
	switch {
	case !media && query.Get("alt") != "" && query.Get("alt") != "json":
		answerGCS(w, http.StatusBadRequest, "invalidParameter", "Invalid value for alt.")
	case !ok && media: // downloads fail in plain text
		http.Error(w, "No such object: "+bucket+"/"+name, http.StatusNotFound)
	case !ok:
		answerGCS(w, http.StatusNotFound, "notFound", "No such object: "+bucket+"/"+name)
	case media:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("X-Goog-Generation", strconv.FormatInt(o.generation, 10))
		w.Header().Set("Content-Length", strconv.Itoa(len(o.content)))
		_, _ = w.Write(o.content)
	default:
		if fields, ok := gcsFields(w, query, o.resource(bucket, name)); ok {
			writeGCS(w, fields)
		}
	}
}

func (c gcsCall) remove() {
	o, ok := c.objects[c.object]
	if !holdsGCS(c.w, c.query, o.generation) {
		return
	}
	if !ok {
		answerGCS(c.w, http.StatusNotFound, "notFound", "No such object: "+c.bucket+"/"+c.object)
		return
	}
	delete(c.objects, c.object)
	c.w.WriteHeader(http.StatusNoContent)
}

// list is https://cloud.google.com/storage/docs/json_api/v1/objects/list. Its
// page token is the last name of the page before.
func (s *GCS) list(c gcsCall) {
	w, query, objects := c.w, c.query, c.objects
	size, err := s.pageSize, error(nil)
	if query.Has("maxResults") {
		size, err = strconv.Atoi(query.Get("maxResults"))
	}
	after, ok := strings.CutPrefix(query.Get("pageToken"), "after:")
	if err != nil || size < 1 || query.Has("pageToken") && !ok {
		answerGCS(w, http.StatusBadRequest, "invalid", "Invalid value for maxResults or pageToken.")
		return
	}
	size = min(size, s.pageSize)
	var items []any
	result := map[string]any{"kind": "storage#objects"}
	last := after
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		if !strings.HasPrefix(name, query.Get("prefix")) || ok && name <= after {
			continue
		}
		if len(items) == size {
			result["nextPageToken"] = "after:" + last
			break
		}
		items = append(items, objects[name].resource(c.bucket, name))
		last = name
	}
	if len(items) > 0 { // Google leaves it out too
		result["items"] = items
	}
	if fields, ok := gcsFields(w, query, result); ok {
		writeGCS(w, fields)
	}
}

// resource is https://cloud.google.com/storage/docs/json_api/v1/objects#resource,
// in part. Numbers of 64 bits are strings.
func (o gcsObject) resource(bucket, name string) map[string]any {
	return map[string]any{
		"kind": "storage#object", "bucket": bucket, "name": name,
		"generation": strconv.FormatInt(o.generation, 10), "metageneration": "1",
		"size": strconv.Itoa(len(o.content)), "updated": o.updated.Format(time.RFC3339Nano), "contentType": "application/octet-stream",
	}
}

func writeGCS(w http.ResponseWriter, resource any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(resource)
}

func refuseGCS(w http.ResponseWriter, _ *http.Request, status int) {
	reasons := map[int]string{
		http.StatusForbidden: "forbidden", http.StatusNotFound: "notFound", http.StatusTooManyRequests: "rateLimitExceeded",
		http.StatusPreconditionFailed: "conditionNotMet", http.StatusServiceUnavailable: "backendError",
	}
	message := "acmelab was told to fail"
	if status == http.StatusNotFound {
		message = "The specified bucket does not exist."
	}
	answerGCS(w, status, cmp.Or(reasons[status], "backendError"), message)
}

// answerGCS answers with an error in the form of
// https://cloud.google.com/storage/docs/json_api/v1/status-codes.
func answerGCS(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": status, "message": message,
		"errors": []any{map[string]any{"domain": "global", "reason": reason, "message": message}},
	}})
}
