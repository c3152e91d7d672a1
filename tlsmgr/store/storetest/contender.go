package storetest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"edge/tlsmgr/store"
)

// contenderEnv holds the orders of a process that is a contender of Torture.
const contenderEnv = "EDGE_STORETEST_CONTENDER"

const (
	contested   = "torture" // the lease
	journalKey  = "journal"
	maxLifetime = 2 * time.Minute // of a contender that is forgotten
)

// orders are what a contender is told.
type orders struct {
	Name string        `json:"name"`
	URL  string        `json:"url"`
	TTL  time.Duration `json:"ttl"`
	Hold time.Duration `json:"hold"` // at most, between what is read and what is written
}

// The steps that a contender reports.
const (
	stepAcquired   = "acquired"
	stepCommitting = "committing" // before the Swap
	stepCommitted  = "committed"
	stepConflict   = "conflict"
	stepFailed     = "failed"
)

// report is a line on the standard output of a contender.
type report struct {
	Step string        `json:"step"`
	ID   string        `json:"id,omitempty"` // of a commit
	From store.Version `json:"from,omitempty"`
	To   store.Version `json:"to,omitempty"`
	Text string        `json:"text,omitempty"`
}

// journal is the object that contenders write: how many commits there were,
// and all of them.
type journal struct {
	Count int      `json:"count"`
	IDs   []string `json:"ids"`
}

// Contend makes the process a contender, until it is killed, if Torture
// started it as one; else it returns false at once. TestMain of every package
// that uses Torture calls it first.
func Contend() bool {
	text, ok := os.LookupEnv(contenderEnv)
	if !ok {
		return false
	}
	out := json.NewEncoder(os.Stdout)
	if err := contend(text, func(r report) { _ = out.Encode(r) }); err != nil {
		_ = out.Encode(report{Step: stepFailed, Text: err.Error()})
	}
	return true
}

func contend(text string, tell func(report)) error {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxLifetime)
	defer cancel()
	go func() { // the pipe ends with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	s, err := store.Open(ctx, o.URL, store.Options{Owner: o.Name, LeaseTTL: o.TTL, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for turn := 0; ; turn++ {
		if err := takeTurn(ctx, s, o, fmt.Sprintf("%s/%d", o.Name, turn), tell); err != nil {
			return err
		}
	}
}

// takeTurn acquires the lease and commits once. It does not look whether the
// lease still holds: it is the late writer that Swap has to refuse.
func takeTurn(ctx context.Context, s *store.Store, o orders, id string, tell func(report)) error {
	l, err := s.Acquire(ctx, contested)
	if err != nil {
		return err
	}
	tell(report{Step: stepAcquired})
	value, from, err := s.LoadVersion(ctx, journalKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var j journal
	if err := json.Unmarshal([]byte(cmp.Or(string(value), "{}")), &j); err != nil {
		return err
	}
	pass(ctx, rand.N(o.Hold)) //nolint:gosec // the work
	next, err := json.Marshal(journal{Count: j.Count + 1, IDs: append(slices.Clone(j.IDs), id)})
	if err != nil {
		return err
	}
	tell(report{Step: stepCommitting, ID: id})
	to, err := s.Swap(ctx, journalKey, next, from)
	switch {
	case err == nil:
		tell(report{Step: stepCommitted, ID: id, From: from, To: to})
	case errors.Is(err, store.ErrConflict):
		tell(report{Step: stepConflict, ID: id})
	default:
		return err
	}
	_ = l.Release(ctx) // of a lost lease, or of one that lapses by itself
	return nil
}
