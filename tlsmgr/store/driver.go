package store

import (
	"context"
	"time"
)

// driver is one kind of storage. Keys it is given are valid (see checkKey).
// Every method may be called concurrently and ends when ctx does.
type driver interface {
	// get returns the value and version at key, or fs.ErrNotExist. A value
	// over MaxObject is ErrTooLarge.
	get(ctx context.Context, key string) ([]byte, Version, error)

	// put writes value at key and returns its version. Under a condition that
	// does not hold it changes nothing and returns ErrConflict. With an error,
	// unclear reports that the write may have happened nevertheless: a reply
	// was lost, or the request was sent again and conflicts with itself.
	put(ctx context.Context, key string, value []byte, cond condition) (v Version, unclear bool, err error)

	// remove deletes the object at key; a missing one is no error. When match
	// is not "" and the object has another version, storage that knows
	// conditional deletes keeps it and returns ErrConflict.
	remove(ctx context.Context, key string, match Version) error

	// list returns a page of the objects below directory dir ("" is the root),
	// at any depth. token is "" or the next of the page before.
	list(ctx context.Context, dir, token string) (page, error)

	// stat describes the object at key, or the directory when there is no
	// object (terminal false, only Key set), or returns fs.ErrNotExist.
	stat(ctx context.Context, key string) (o Object, terminal bool, err error)

	// close frees what the driver holds open.
	close() error
}

// condition says when a put may happen. The zero value is "always".
type condition struct {
	absent bool    // only when there is no object
	match  Version // only when the object has this version
}

type page struct {
	objects []Object
	next    string // "" on the last page
}

// capped passes at most cap(slots) requests at a time to a driver and bounds
// the time of each.
type capped struct {
	driver
	slots   chan struct{}
	timeout time.Duration
}

func newCapped(d driver) *capped {
	return &capped{driver: d, slots: make(chan struct{}, maxRequests), timeout: requestTimeout}
}

// enter waits for a slot; leave gives it back.
func (c *capped) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if ctx.Err() != nil { // both were ready
		<-c.slots
		return nil, nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	return ctx, func() { cancel(); <-c.slots }, nil
}

func (c *capped) get(ctx context.Context, key string) ([]byte, Version, error) {
	bounded, leave, err := c.enter(ctx)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	value, v, err := c.driver.get(bounded, key)
	return value, v, ended(ctx, err)
}

func (c *capped) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	bounded, leave, err := c.enter(ctx)
	if err != nil {
		return "", false, err
	}
	defer leave()
	v, unclear, err := c.driver.put(bounded, key, value, cond)
	return v, unclear, ended(ctx, err)
}

func (c *capped) remove(ctx context.Context, key string, match Version) error {
	bounded, leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return ended(ctx, c.driver.remove(bounded, key, match))
}

func (c *capped) list(ctx context.Context, dir, token string) (page, error) {
	bounded, leave, err := c.enter(ctx)
	if err != nil {
		return page{}, err
	}
	defer leave()
	p, err := c.driver.list(bounded, dir, token)
	return p, ended(ctx, err)
}

func (c *capped) stat(ctx context.Context, key string) (Object, bool, error) {
	bounded, leave, err := c.enter(ctx)
	if err != nil {
		return Object{}, false, err
	}
	defer leave()
	o, terminal, err := c.driver.stat(bounded, key)
	return o, terminal, ended(ctx, err)
}
