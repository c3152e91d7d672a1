package store

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// memDriver keeps objects in memory, for tests about time. Versions are a
// counter.
type memDriver struct {
	// fault may fail a request, before it has its effect or after. nil is none.
	fault func(ctx context.Context, op, key string) (before, after error)

	mu      sync.Mutex
	count   int
	gets    int
	puts    int
	objects map[string]memObject
}

type memObject struct {
	value   []byte
	version Version
}

func newMem(t *testing.T, d *memDriver, owner string) *Store {
	t.Helper()
	s := newStore(d, "mem:", Options{Owner: owner})
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (d *memDriver) request(ctx context.Context, op, key string) (before, after error) {
	if ctx.Err() != nil {
		return context.Cause(ctx), nil
	}
	if d.fault == nil {
		return nil, nil
	}
	return d.fault(ctx, op, key)
}

func (d *memDriver) get(ctx context.Context, key string) ([]byte, Version, error) {
	if before, after := d.request(ctx, "get", key); before != nil || after != nil {
		return nil, "", before
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gets++
	o, ok := d.objects[key]
	if !ok {
		return nil, "", fs.ErrNotExist
	}
	return o.value, o.version, nil
}

func (d *memDriver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	before, after := d.request(ctx, "put", key)
	if before != nil {
		return "", true, before
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.puts++
	o, ok := d.objects[key]
	if cond.absent && ok || cond.match != "" && o.version != cond.match {
		return "", false, ErrConflict
	}
	if d.objects == nil {
		d.objects = map[string]memObject{}
	}
	d.count++
	v := Version(strconv.Itoa(d.count))
	d.objects[key] = memObject{value, v}
	return v, true, after
}

func (d *memDriver) remove(ctx context.Context, key string, match Version) error {
	if before, after := d.request(ctx, "remove", key); before != nil || after != nil {
		return errors.Join(before, after)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o, ok := d.objects[key]; ok && match != "" && o.version != match {
		return ErrConflict
	}
	delete(d.objects, key)
	return nil
}

func (d *memDriver) list(_ context.Context, dir, _ string) (page, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var p page
	for key, o := range d.objects {
		if strings.HasPrefix(key, dir) {
			p.objects = append(p.objects, Object{Key: key, Version: o.version})
		}
	}
	return p, nil
}

func (d *memDriver) stat(context.Context, string) (Object, bool, error) {
	return Object{}, false, fs.ErrNotExist
}

func (d *memDriver) close() error { return nil }

func TestUnclearConflictIsNotCalledAConflict(t *testing.T) {
	for name, lost := range map[string]error{"read back fails": errDown, "object is gone": nil} {
		t.Run(name, func(t *testing.T) {
			var gets atomic.Int32
			d := &unclearDriver{memDriver{fault: func(_ context.Context, op, _ string) (error, error) {
				if op == "get" && gets.Add(1) == 1 {
					return lost, nil
				}
				return nil, nil
			}}}
			s := newStore(d, "mem:", Options{})
			_, err := s.Swap(t.Context(), "key", []byte("x"), "old")
			if want := lost; want == nil && !errors.Is(err, ErrConflict) || want != nil && (!errors.Is(err, want) || errors.Is(err, ErrConflict)) {
				t.Errorf("got %v; want a conflict only when it is known to be with another", err)
			}
		})
	}
}

// unclearDriver conflicts as S3 does when a request was sent again.
type unclearDriver struct{ memDriver }

func (d *unclearDriver) put(context.Context, string, []byte, condition) (Version, bool, error) {
	return "", true, ErrConflict
}
