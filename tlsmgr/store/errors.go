package store

import (
	"context"
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is. A missing key is
// fs.ErrNotExist, as certmagic.Storage asks for.
var (
	// ErrConflict says that Swap lost: the object changed, appeared or went
	// away since its version was read. Read again and decide again.
	ErrConflict = errors.New("object was changed by another writer")

	// ErrLeaseLost says that a lease may have passed to another holder. It is
	// the cause of the contexts that Lease.Context made.
	ErrLeaseLost = errors.New("lease lost")

	// ErrClosed is returned by a Store after Close.
	ErrClosed = errors.New("store is closed")

	// ErrTooLarge refuses an object larger than MaxObject.
	ErrTooLarge = fmt.Errorf("object is larger than %d bytes", MaxObject)

	// ErrInvalidKey refuses a key that cannot be the same object in every
	// kind of storage.
	ErrInvalidKey = errors.New("invalid key")

	// ErrUnsafe is what Probe answers for storage that accepts conditional
	// writes and then ignores the condition.
	ErrUnsafe = errors.New("storage does not keep its promises")
)

// fault is a storage error as the operator should read it: one line, what is
// wrong and in parentheses what to do. The cause stays reachable by errors.As.
type fault struct {
	message, hint string
	cause         error
}

func (f *fault) Error() string {
	if f.hint == "" {
		return f.message
	}
	return f.message + " (" + f.hint + ")"
}

func (f *fault) Unwrap() error { return f.cause }

// ended returns the context's error when that is why err happened, so that a
// caller who gave up is not told that the storage is broken.
func ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		return cause
	}
	return err
}
