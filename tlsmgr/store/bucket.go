package store

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"regexp"
	"strings"
)

const (
	maxPrefix = 400 // with MaxKey below the 1024 bytes of a name in every cloud
	pageSize  = 1000
)

// bucketURL is what the URLs of all buckets have in common.
type bucketURL struct {
	scheme string
	bucket string
	prefix string // of every key: "" or with a slash at the end
	query  url.Values
}

// bucketRules say what the URL of one kind of bucket may look like.
type bucketRules struct {
	noun    string // what the vendor calls a bucket
	names   *regexp.Regexp
	secrets string // where credentials are taken from
	example string
	set     func(option, value string) error
}

// parseBucket checks u and passes its options to set. A value that is refused
// is not shown: it may be a secret in the wrong place.
func parseBucket(u *url.URL, r bucketRules) (bucketURL, error) {
	b := bucketURL{scheme: u.Scheme, bucket: u.Host}
	switch {
	case u.User != nil:
		return b, &fault{message: "a storage URL holds no credentials", hint: r.secrets}
	case !r.names.MatchString(u.Host):
		return b, &fault{message: "no valid " + r.noun + " name", hint: r.example}
	case u.Fragment != "":
		return b, &fault{message: "a storage URL has no #fragment", hint: r.example}
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if err := checkKey(prefix); err != nil || len(prefix) > maxPrefix {
			return b, &fault{message: "the prefix is no valid key", hint: r.example, cause: err}
		}
		b.prefix = prefix + "/"
	}
	var err error
	if b.query, err = url.ParseQuery(u.RawQuery); err != nil {
		return b, &fault{message: "the options cannot be parsed", hint: r.example}
	}
	for option, values := range b.query {
		if len(values) != 1 {
			return b, &fault{message: "an option is given twice", hint: r.example}
		}
		if err := r.set(option, values[0]); err != nil {
			return b, err
		}
	}
	return b, nil
}

// checkEndpoint accepts the base URL of a server.
func checkEndpoint(value string) error {
	e, err := url.Parse(value)
	if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" ||
		e.User != nil || e.RawQuery != "" || e.Fragment != "" {
		return &fault{message: "endpoint is no http or https URL without user and options", hint: "endpoint=https://storage.example.com:9000"}
	}
	return nil
}

// String is the URL with what set has accepted, and nothing else.
func (b bucketURL) String() string {
	u := url.URL{Scheme: b.scheme, Host: b.bucket, Path: "/" + strings.TrimSuffix(b.prefix, "/"), RawQuery: b.query.Encode()}
	return u.String()
}

// name is what the object at key is called in the bucket.
func (b bucketURL) name(key string) string { return b.prefix + key }

// below is what the names of all objects below dir begin with.
func (b bucketURL) below(dir string) string {
	if dir == "" {
		return b.prefix
	}
	return b.name(dir + "/")
}

// key is the reverse of name. It is false for what is no object of ours, such
// as the "dir/" that consoles create.
func (b bucketURL) key(name string) (string, bool) {
	key, ok := strings.CutPrefix(name, b.prefix)
	return key, ok && checkKey(key) == nil
}

// readObject reads a body; length is what its sender declared, nil if nothing.
func readObject(body io.Reader, length *int64) ([]byte, error) {
	if length != nil && *length > MaxObject {
		return nil, ErrTooLarge
	}
	value, err := io.ReadAll(io.LimitReader(body, MaxObject+1))
	if err == nil && len(value) > MaxObject {
		err = ErrTooLarge
	}
	return value, err
}

// statDirectory is what stat says when there is no object at key.
func statDirectory(ctx context.Context, d driver, key string) (Object, bool, error) {
	for token := ""; ; {
		p, err := d.list(ctx, key, token)
		switch {
		case err != nil:
			return Object{}, false, err
		case len(p.objects) > 0:
			return Object{Key: key}, false, nil
		case p.next == "":
			return Object{}, false, fs.ErrNotExist
		case p.next == token:
			return Object{}, false, errEndless
		}
		token = p.next // a page may be empty, as after many deletions
	}
}

// errNoVersion refuses a server that does not say what version a write made.
func errNoVersion(noun, bucket, header string) error {
	return &fault{message: fmt.Sprintf("%s %s answers without %s", noun, bucket, header), hint: "edge needs a storage with conditional writes"}
}
