package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"edge/tlsmgr/store"

	"golang.org/x/sync/errgroup"
)

// Bounds of what goes over all objects.
const (
	maxAtOnce   = 32 // objects
	maxErrors   = 20 // that are told one by one
	maxStreak   = 32 // errors without one success, then the storage counts as down
	maxAttempts = 16 // at a Swap that conflicts
	swapPause   = 50 * time.Millisecond
)

// entry is an object of the layout, as a listing knows it.
type entry struct {
	store.Object
	kind Kind
	id   string
}

// list returns what is in the storage, and below our directory but none of ours.
// It costs one paged LIST.
func (v *Vault) list(ctx context.Context) (ours []entry, foreign []store.Object, err error) {
	objects, err := v.store.ListVersions(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range objects {
		if kind, id, ok := Parse(o.Key); ok {
			ours = append(ours, entry{Object: o, kind: kind, id: id})
		} else {
			foreign = append(foreign, o)
		}
	}
	return ours, foreign, nil
}

// load returns the plain content of e, the id of the key that sealed it and its
// version. An error that is errObject is about this object alone.
func (v *Vault) load(ctx context.Context, e entry) (plain []byte, sealedBy string, version store.Version, err error) {
	raw, version, err := v.store.LoadVersion(ctx, e.Key)
	if err != nil {
		return nil, "", "", err
	}
	plain, sealedBy, err = v.keys.unwrap(e.Key, raw)
	return plain, sealedBy, version, err
}

// errDown ends a round early.
var errDown = errors.New("gave up, the storage seems to be down")

// each calls f for every entry, some at once, and progress after each. Objects
// that fail do not keep others from their turn, unless it looks as if all would;
// then the error is errDown.
func each(ctx context.Context, entries []entry, progress func(done, total int), f func(context.Context, entry) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r := round{total: len(entries), progress: progress, stop: stop}
	var g errgroup.Group
	g.SetLimit(maxAtOnce)
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := f(ctx, e)
			if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
				err = nil // told once, below
			}
			r.add(err)
			return nil
		})
	}
	_ = g.Wait() // they return none
	if r.more > 0 {
		r.errs = append(r.errs, fmt.Errorf("and %d more", r.more))
	}
	return errors.Join(append(r.errs, context.Cause(ctx))...)
}

// round is how far each is.
type round struct {
	total    int
	progress func(done, total int)
	stop     context.CancelCauseFunc

	mu     sync.Mutex
	done   int
	streak int // errors without a success between
	errs   []error
	more   int // errors that are not in errs
}

func (r *round) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	if r.progress != nil {
		r.progress(r.done, r.total)
	}
	if err == nil || ofObject(err) {
		r.streak = 0
	} else if r.streak++; r.streak == maxStreak {
		r.stop(errDown)
	}
	switch {
	case err == nil:
	case len(r.errs) < maxErrors:
		r.errs = append(r.errs, err)
	default:
		r.more++
	}
}

// ofObject reports whether err is about one object, so that the storage works.
func ofObject(err error) bool {
	for _, e := range []error{ErrNewer, ErrNoKey, ErrDamaged, ErrDiffers, errBusy, store.ErrConflict, store.ErrTooLarge, fs.ErrNotExist} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// again runs try until it does not conflict, a bounded number of times.
func again(ctx context.Context, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		if n == maxAttempts {
			return fmt.Errorf("%w, %d times (try again)", err, n)
		}
		timer := time.NewTimer(rand.N(time.Duration(n) * swapPause)) //nolint:gosec // G404: jitter
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// Update changes the object of type T called id: it loads it, or begins with an
// empty one, lets change work on it and saves it, again when somebody else was
// faster. change reports whether there is anything to write; it may be called
// several times, each time with what is stored now. Returned is what is stored
// after it, with its version.
func Update[T Object](ctx context.Context, v *Vault, id string, change func(*T) (write bool, err error)) (*T, store.Version, error) {
	var (
		t       *T
		version store.Version
	)
	err := again(ctx, func() (err error) {
		t, version, err = Load[T](ctx, v, id)
		if errors.Is(err, fs.ErrNotExist) {
			t, err = new(T), nil
		}
		if err != nil {
			return err
		}
		write, err := change(t)
		if err != nil || !write {
			return err
		}
		version, err = Save(ctx, v, id, t, version)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return t, version, nil
}

// read decodes the plain content of an object of any kind.
func read(kind Kind, id string, plain []byte) (object, error) {
	switch kind {
	case Certificates:
		return deref(decode[Certificate](id, plain))
	case Accounts:
		return deref(decode[Account](id, plain))
	case Orders:
		return deref(decode[Order](id, plain))
	case Authorities:
		return deref(decode[Authority](id, plain))
	case Budgets:
		return deref(decode[Budget](id, plain))
	case Replicas:
		return deref(decode[Replica](id, plain))
	case Challenges:
		return deref(decode[Challenge](id, plain))
	}
	return nil, fmt.Errorf("%w: of no kind", ErrDamaged)
}

func deref[T Object](t *T, err error) (object, error) {
	if err != nil {
		return nil, err
	}
	return any(*t).(object), nil
}

// oneLine is err for a report.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
