package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edge/tlsmgr/store"
)

func TestURLsAreCheckedWithoutEchoingSecrets(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{"s3://edge?password=hunter2", "unknown option (known are region, endpoint and path_style)"},
		{"s3://AKIA:hunter2@edge/prefix", "holds no credentials (set AWS_ACCESS_KEY_ID"},
		{"s3://AKIA:hunter2/x@edge", "cannot be parsed (s3://bucket/prefix"},
		{"s3://%zz/hunter2", "cannot be parsed"},
		{"s3:///prefix", "no valid bucket name"},
		{"s3://UPPER", "no valid bucket name"},
		{"s3://edge/a//b", "the prefix is no valid key"},
		{"s3://edge/../b", "the prefix is no valid key"},
		{"s3://edge/" + strings.Repeat("p/", 201), "the prefix is no valid key"},
		{"s3://edge?region=hunter2%0a", "region is no region (region=eu-west-1)"},
		{"s3://edge?region=a&region=b", "an option is given twice"},
		{"s3://edge?a=%zz", "the options cannot be parsed"},
		{"s3://edge?endpoint=minio:9000", "endpoint is no http or https URL"},
		{"s3://edge?endpoint=https://key:hunter2@minio", "endpoint is no http or https URL"},
		{"s3://edge?endpoint=https://minio%3Ftoken=hunter2", "endpoint is no http or https URL"},
		{"s3://edge?path_style=hunter2", "path_style is neither true nor false"},
		{"s3://edge#hunter2", "no #fragment"},
		{"file://var/lib/edge", "needs an absolute path after three slashes (file:///var/lib/edge)"},
		{"file:data", "needs an absolute path"},
		{"file://", "needs an absolute path"},
		{"file:///data?mode=hunter2", "takes no options"},
		{"gs://edge?token=hunter2", "unknown option (known are endpoint and credentials)"},
		{"gs://user:hunter2@edge", "holds no credentials (set GOOGLE_APPLICATION_CREDENTIALS"},
		{"gs://UPPER", "no valid bucket name (gs://bucket/prefix"},
		{"gs://edge/a//b", "the prefix is no valid key"},
		{"gs://edge?credentials={hunter2}", "credentials is neither an absolute path nor default (credentials=/etc/edge/key.json)"},
		{"gs://edge?endpoint=ftp://hunter2", "endpoint is no http or https URL"},
		{"gs://edge?credentials=default&endpoint=http://storage.example.com", "credentials would be sent unencrypted (use an https endpoint)"},
		{"azblob://edge?key=hunter2", "unknown option (known are account and endpoint)"},
		{"azblob://edge:hunter2@edge", "holds no credentials (set AZURE_STORAGE_KEY"},
		{"azblob://a--b?account=acme", "no valid container name (azblob://container/prefix"},
		{"azblob://edge?account=hunter2-", "account is no name of a storage account (account=acmeedge)"},
		{"azblob://edge?endpoint=https://acme?sig=hunter2", "endpoint is no http or https URL"},
		{"/var/lib/edge", `unknown storage scheme "" (s3://bucket/prefix?region=eu-west-1, gs://bucket/prefix, azblob://container/prefix?account=… or file:///var/lib/edge)`},
		{"https://user:hunter2@host", `unknown storage scheme "https"`},
	} {
		_, err := store.Open(t.Context(), c.url, store.Options{})
		wantText(t, err, "storage URL", c.want)
	}
}

func TestURLNamesTheStoreInOneWay(t *testing.T) {
	for raw, want := range map[string]string{
		"file:///var/lib/edge/":       "file:///var/lib/edge",
		"file://localhost/var/./edge": "file:///var/edge",
		"s3://edge":                   "s3://edge/",
		"s3://edge/a/b/?region=eu-west-1&endpoint=http://m:9000": "s3://edge/a/b?endpoint=http%3A%2F%2Fm%3A9000&region=eu-west-1",
		"gs://edge/a/?credentials=/etc/key.json":                 "gs://edge/a?credentials=%2Fetc%2Fkey.json",
		"azblob://edge/a/?account=acme":                          "azblob://edge/a?account=acme",
	} {
		s := newStore(t, raw, store.Options{})
		if s.URL() != want {
			t.Errorf("%s: got %s, want %s", raw, s.URL(), want)
		}
	}
}

// FuzzKeys: a key is refused, or it is one object inside the directory that
// reads, lists and deletes under the very same name.
func FuzzKeys(f *testing.F) {
	for _, key := range []string{
		"a", "a/b", "..", "a/../../b", "/etc/passwd", `a\..\b`, ".edge/guard", "a/.edge", "a//b", "\x00", "ä", "a\xff", "con", "~", "-",
		"wildcard_.example.com/wildcard_.example.com.json", strings.Repeat("a", 256), strings.Repeat("a/", 256) + "a",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		parent := t.TempDir()
		u := url.URL{Scheme: "file", Path: parent + "/store"} // there is a # in it
		s := newStore(t, u.String(), store.Options{})
		value := []byte(key)
		err := s.Store(t.Context(), key, value)
		entries, readErr := os.ReadDir(parent)
		if readErr != nil || len(entries) > 1 {
			t.Fatalf("outside the store: %v, %v", entries, readErr)
		}
		if errors.Is(err, store.ErrInvalidKey) {
			return
		}
		if err != nil {
			t.Fatalf("neither refused nor stored: %v", err)
		}
		got, err := s.Load(t.Context(), key)
		if err != nil || !bytes.Equal(got, value) {
			t.Errorf("load: got %q, %v", got, err)
		}
		objects, err := s.ListVersions(t.Context(), "")
		if err != nil || len(objects) != 1 || objects[0].Key != key {
			t.Errorf("versions: got %v, %v; want the one key", objects, err)
		}
		keys, err := s.List(t.Context(), "", true)
		if err != nil || !slices.Contains(keys, key) {
			t.Errorf("list: got %q, %v; want %q among them", keys, err, key)
		}
		if err := s.Delete(t.Context(), key); err != nil || s.Exists(t.Context(), key) {
			t.Errorf("delete: %v, exists %v", err, s.Exists(t.Context(), key))
		}
	})
}

func TestKeysOfDriversCannotBeReached(t *testing.T) {
	s, dir := newFile(t)
	for _, key := range []string{".edge", ".edge/guard", ".edge/incoming", ".edge-x"} {
		if err := s.Store(t.Context(), key, nil); !errors.Is(err, store.ErrInvalidKey) {
			t.Errorf("%s: got %v, want %v", key, err, store.ErrInvalidKey)
		}
	}
	if err := s.Store(t.Context(), "a/.edge", nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a", ".edge")); err != nil {
		t.Error(err)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "edge-store")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	s, err := store.Open(ctx, "file://"+dir, store.Options{Owner: "replica 1"})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	if err := s.Probe(ctx); err != nil {
		panic(err)
	}

	lease, err := s.Acquire(ctx, "order example.com")
	if err != nil {
		panic(err)
	}
	defer lease.Release(ctx)
	ctx, cancel := lease.Context(ctx)
	defer cancel()

	first, err := s.Swap(ctx, "certs/example.com", []byte("first"), "")
	fmt.Println("create:", err)
	_, err = s.Swap(ctx, "certs/example.com", []byte("second"), first)
	fmt.Println("replace:", err)
	_, err = s.Swap(ctx, "certs/example.com", []byte("late"), first)
	fmt.Println("replace what has changed:", err)

	value, err := s.Load(ctx, "certs/example.com")
	fmt.Printf("%s %v\n", value, err)
	// Output:
	// create: <nil>
	// replace: <nil>
	// replace what has changed: swap "certs/example.com": object was changed by another writer
	// second <nil>
}
