// Package store keeps certificates and everything that belongs to them in
// storage that all replicas of edge share: a directory, or a bucket of S3,
// Google Cloud Storage or Azure Blob Storage.
//
//	s, err := store.Open(ctx, "s3://acme-edge/prod?region=eu-west-1", store.Options{})
//	if err != nil { … }
//	defer s.Close()
//	if err := s.Probe(ctx); err != nil { … } // the first network traffic
//
//	value, version, err := s.LoadVersion(ctx, "edge/v1/certs/a.json")
//	_, err = s.Swap(ctx, "edge/v1/certs/a.json", value, version) // ErrConflict: somebody was faster
//
//	lease, err := s.Acquire(ctx, "order a")
//	defer lease.Release(ctx)
//	ctx, cancel := lease.Context(ctx) // ends when the lease is lost
//
// A Store is a certmagic.Storage, so everything written for that interface can
// read and write the same data. It adds what several writers need: versions,
// compare-and-swap and leases that notice that they are lost.
//
// Swap compares values, not histories. In a directory and in S3 a version is a
// digest of the content, so an object that went from A to B and back to A has
// the version of A again, and a Swap made for A succeeds. That is sound, since
// everything the caller concluded from A holds again. At Google (generation)
// and Azure (ETag) a version names one write, and the Swap conflicts. Who needs
// to see every change puts a counter or a random nonce into the value, as
// leases do.
//
// A lease is advice with a bound: when a process is stopped for longer than
// the lease lasts, two may believe for a moment that they hold it. What must
// not be written twice is therefore written with Swap and the version that was
// read under the lease; the late writer gets ErrConflict.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Bounds of every Store.
const (
	MaxObject = 1 << 20 // bytes in an object
	MaxKey    = 512     // bytes in a key

	maxComponent   = 255     // bytes between two slashes: NAME_MAX of every file system we know
	maxList        = 1 << 20 // objects below one directory
	maxPages       = 4 * maxList / pageSize
	maxRequests    = 32               // at a time; as many again for leases
	maxDeletes     = 8                // at a time, when a directory is deleted
	requestTimeout = 60 * time.Second // one operation with its retries
)

// Version names the content of an object, as LoadVersion, Swap and
// ListVersions return it; they agree. It is opaque. "" is an object that does
// not exist.
type Version string

// Object is what a listing says about one object.
type Object struct {
	Key      string
	Version  Version
	Size     int64
	Modified time.Time // by the storage's clock; for people, not for decisions
}

// Options of Open. The zero value is what production uses.
type Options struct {
	Logger *slog.Logger // nil is slog.Default()

	// Owner is written into leases so that people can see who holds one.
	// "" is the host name and process id.
	Owner string

	// LeaseTTL is how long a lease outlives its last heartbeat. 0 is
	// DefaultLeaseTTL. Replicas may use different values.
	LeaseTTL time.Duration
}

// Store is shared storage. It may be used concurrently. Close it.
type Store struct {
	url     string // redacted
	log     *slog.Logger
	owner   string
	ttl     time.Duration
	driver  driver
	objects *capped
	leases  *capped // apart, so that heartbeats never wait behind a slow listing
	probing chan struct{}
	closing chan struct{} // closed by Close
	keepers sync.WaitGroup
	lost    atomic.Int64 // leases

	mu      sync.Mutex
	probed  *error               // what Probe found; nil before
	queues  map[string]*queue    // by lease key
	watches map[string]stopwatch // by lease key
	orphans map[string]string    // by lease key: the nonce of a record of ours that nobody holds
	held    map[*Lease]struct{}
	locked  map[string]*Lease // by certmagic lock name
}

// Open returns the Store at rawURL:
//
//	file:///var/lib/edge
//	s3://bucket/prefix?region=eu-west-1&endpoint=https://minio:9000&path_style=true
//	gs://bucket/prefix?credentials=/etc/edge/key.json
//	azblob://container/prefix?account=acmeedge
//
// It checks the URL only and touches neither network nor disk; Probe does.
// Credentials are looked for at the first request, in the way of each cloud:
//
//   - s3: the AWS default chain (environment, profile, web identity, container
//     and instance roles). With an endpoint, path_style is true unless the URL
//     says false.
//   - gs: application default credentials (GOOGLE_APPLICATION_CREDENTIALS, the
//     login of gcloud, workload identity, the metadata server), or the file
//     that credentials names. With an endpoint, or STORAGE_EMULATOR_HOST in the
//     environment, none are sent, unless credentials names a file or is
//     "default" for the chain.
//   - azblob: AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_KEY, or the
//     chain of azidentity (environment, workload identity, managed identity,
//     the login of az). account may stand in AZURE_STORAGE_ACCOUNT. endpoint is
//     the URL of the account where it is not
//     https://ACCOUNT.blob.core.windows.net, as in other clouds and emulators.
func Open(_ context.Context, rawURL string, o Options) (*Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The error would quote the URL, which may hold a secret.
		return nil, &fault{message: "storage URL cannot be parsed", hint: urlHint}
	}
	var (
		d    driver
		safe string
	)
	switch u.Scheme {
	case "file":
		d, safe, err = openFile(u)
	case "s3":
		d, safe, err = openS3(u)
	case "gs":
		d, safe, err = openGCS(u)
	case "azblob":
		d, safe, err = openAzure(u)
	default:
		err = &fault{message: fmt.Sprintf("unknown storage scheme %q", u.Scheme), hint: urlHint}
	}
	if err != nil {
		return nil, fmt.Errorf("storage URL: %w", err)
	}
	return newStore(d, safe, o), nil
}

const urlHint = "s3://bucket/prefix?region=eu-west-1, gs://bucket/prefix, azblob://container/prefix?account=… or file:///var/lib/edge"

func newStore(d driver, safeURL string, o Options) *Store {
	s := &Store{
		url:     safeURL,
		log:     o.Logger,
		owner:   o.Owner,
		ttl:     o.LeaseTTL,
		driver:  d,
		objects: newCapped(d),
		leases:  newCapped(d),
		probing: make(chan struct{}, 1),
		closing: make(chan struct{}),
		queues:  map[string]*queue{},
		watches: map[string]stopwatch{},
		orphans: map[string]string{},
		held:    map[*Lease]struct{}{},
		locked:  map[string]*Lease{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.owner == "" {
		host, _ := os.Hostname() // "" is as good a name as any
		s.owner = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if s.ttl <= 0 {
		s.ttl = DefaultLeaseTTL
	}
	s.ttl = min(max(s.ttl, minLeaseTTL), maxLeaseTTL)
	return s
}

// URL names the store in messages; it holds no secrets.
func (s *Store) URL() string { return s.url }

// LoadVersion returns the value at key and its version, or an error that is
// fs.ErrNotExist.
func (s *Store) LoadVersion(ctx context.Context, key string) ([]byte, Version, error) {
	if err := s.check(key); err != nil {
		return nil, "", fmt.Errorf("load %q: %w", key, err)
	}
	value, v, err := s.objects.get(ctx, key)
	if err != nil {
		return nil, "", fmt.Errorf("load %q: %w", key, err)
	}
	return value, v, nil
}

// Swap writes value at key only if the object there still has version old, and
// returns the new version. An old of "" creates: the key must not exist. When
// the condition does not hold the error is ErrConflict.
//
// A write whose reply got lost is sent again by the clients and then
// conflicts with itself. Swap therefore reads back after an unclear outcome:
// when the object holds exactly value, that is success. Any error other than
// ErrConflict leaves open whether the write happened, or still will.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old Version) (Version, error) {
	if err := s.checkWrite(key, value); err != nil {
		return "", fmt.Errorf("swap %q: %w", key, err)
	}
	v, err := swap(ctx, s.objects, key, value, old)
	if err != nil {
		return "", fmt.Errorf("swap %q: %w", key, err)
	}
	return v, nil
}

func swap(ctx context.Context, d driver, key string, value []byte, old Version) (Version, error) {
	v, unclear, err := d.put(ctx, key, value, condition{absent: old == "", match: old})
	if err == nil || !unclear {
		return v, err
	}
	found, v, getErr := d.get(ctx, key)
	switch {
	case getErr == nil && bytes.Equal(found, value):
		return v, nil
	case getErr != nil && !errors.Is(getErr, fs.ErrNotExist) && errors.Is(err, ErrConflict):
		return "", fmt.Errorf("read back what conflicts, perhaps with itself: %w", getErr)
	}
	return "", err
}

// Remove deletes the object at key only if it still has version old; one that
// has another is ErrConflict, one that is not there is no error. S3 takes no
// condition for a delete: there it deletes whatever is there, and a lease has to
// keep others away.
func (s *Store) Remove(ctx context.Context, key string, old Version) error {
	err := s.check(key)
	if err == nil && old == "" {
		err = ErrConflict // it names no object, and to a driver no condition
	}
	if err == nil {
		err = s.objects.remove(ctx, key, old)
	}
	if err != nil {
		return fmt.Errorf("remove %q: %w", key, err)
	}
	return nil
}

// ListVersions returns every object below prefix, a directory or "" for all,
// in order of keys; none is no error. It costs one LIST request per page.
func (s *Store) ListVersions(ctx context.Context, prefix string) ([]Object, error) {
	if err := s.checkDir(prefix); err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	objects, err := s.walk(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	return objects, nil
}

// walk reads all pages of a listing.
func (s *Store) walk(ctx context.Context, dir string) (objects []Object, err error) {
	token := ""
	for range maxPages {
		p, err := s.objects.list(ctx, dir, token)
		if err != nil {
			return nil, err
		}
		objects = append(objects, p.objects...)
		if len(objects) > maxList {
			return nil, &fault{message: fmt.Sprintf("more than %d objects", maxList), hint: "give edge a prefix of its own"}
		}
		switch p.next {
		case "":
			return objects, nil
		case token:
			return nil, errEndless
		}
		token = p.next
	}
	return nil, errEndless
}

// errEndless refuses a listing without its end: what is missing from it would
// pass for deleted.
var errEndless = &fault{message: "the storage does not say how a long listing goes on", hint: "edge needs listings in pages, in S3 ListObjectsV2"}

// Close ends the heartbeats of leases that are still held, without releasing
// them: their holders may still be at work, so heirs wait until the leases
// lapse. Contexts of those leases end with ErrLeaseLost. Calls after Close
// return ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return nil
	}
	close(s.closing)
	held := make([]*Lease, 0, len(s.held))
	for l := range s.held {
		held = append(held, l)
	}
	s.mu.Unlock()
	for _, l := range held {
		_ = l.lose(ErrClosed)
	}
	s.keepers.Wait()
	return s.driver.close()
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

func (s *Store) check(key string) error {
	if s.isClosed() {
		return ErrClosed
	}
	return checkKey(key)
}

func (s *Store) checkDir(dir string) error {
	if dir == "" && !s.isClosed() {
		return nil
	}
	return s.check(dir)
}

func (s *Store) checkWrite(key string, value []byte) error {
	if len(value) > MaxObject {
		return ErrTooLarge
	}
	return s.check(key)
}

// private is the first letters of names at the root that drivers keep for
// themselves; no key may begin with it.
const private = ".edge"

// checkKey accepts the keys that mean the same in a file system and in a
// bucket: components between single slashes, UTF-8, no control characters, no
// backslash, no "." or "..".
func checkKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty", ErrInvalidKey)
	case len(key) > MaxKey:
		return fmt.Errorf("%w: longer than %d bytes", ErrInvalidKey, MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: not UTF-8", ErrInvalidKey)
	case strings.HasPrefix(key, private):
		return fmt.Errorf("%w: begins with %q, which storage keeps for itself", ErrInvalidKey, private)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f || r == '\\' {
			return fmt.Errorf("%w: holds %q", ErrInvalidKey, r)
		}
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "":
			return fmt.Errorf("%w: begins or ends with a slash, or has two in a row", ErrInvalidKey)
		case part == "." || part == "..":
			return fmt.Errorf("%w: has a component %q", ErrInvalidKey, part)
		case len(part) > maxComponent:
			return fmt.Errorf("%w: has a component longer than %d bytes", ErrInvalidKey, maxComponent)
		}
	}
	return nil
}
