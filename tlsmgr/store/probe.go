package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	probeDir     = "edge-probe"
	probeCleanup = 10 * time.Second
)

// Probe makes sure that the storage can be reached, read and written, and that
// it keeps the promises edge is built on: create-only and conditional writes
// are refused when they must be, reads and listings show the last write with
// its version. It writes one small object below edge-probe/ and removes it.
//
// A storage that takes conditional writes but ignores the condition is refused
// with ErrUnsafe: replicas would overwrite each other's certificates. The
// verdict of a Store, good or ErrUnsafe, is not repeated; other errors, such
// as a storage that is down, are.
func (s *Store) Probe(ctx context.Context) error {
	select {
	case s.probing <- struct{}{}: // one at a time
		defer func() { <-s.probing }()
	case <-ctx.Done():
		return fmt.Errorf("probe storage %s: %w", s.url, context.Cause(ctx))
	}
	s.mu.Lock()
	verdict := s.probed
	s.mu.Unlock()
	if verdict != nil {
		return *verdict
	}
	err := s.probe(ctx)
	if err != nil {
		err = fmt.Errorf("probe storage %s: %w", s.url, err)
	}
	if err == nil || errors.Is(err, ErrUnsafe) {
		s.mu.Lock()
		s.probed = &err
		s.mu.Unlock()
	}
	return err
}

func (s *Store) probe(ctx context.Context) (err error) {
	key := probeDir + "/" + rand.Text() // replicas that start together do not meet
	// Four different values, so that none is taken for a write that succeeded
	// after all.
	first, err := s.Swap(ctx, key, []byte("edge probe 1\n"), "")
	if err != nil {
		return err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeCleanup)
		defer cancel()
		gone := s.Delete(cleanup, key)
		if err == nil {
			err = gone
		} else if gone != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "probe object left behind", slog.String("key", key), slog.Any("err", gone))
		}
	}()
	_, err = s.Swap(ctx, key, []byte("edge probe 2\n"), "")
	if err := mustConflict(err, "it overwrites an object that must not exist yet, ignoring If-None-Match or ifGenerationMatch=0"); err != nil {
		return err
	}
	value := []byte("edge probe 3\n")
	second, err := s.Swap(ctx, key, value, first)
	if errors.Is(err, ErrConflict) {
		return unsafe("it refuses to replace an object whose version was just returned")
	}
	if err != nil {
		return err
	}
	_, err = s.Swap(ctx, key, []byte("edge probe 4\n"), first)
	if err := mustConflict(err, "it overwrites an object that has changed, ignoring If-Match or ifGenerationMatch"); err != nil {
		return err
	}
	return s.probeRead(ctx, key, value, second)
}

// probeRead checks that reads show the last write.
func (s *Store) probeRead(ctx context.Context, key string, value []byte, v Version) error {
	found, foundVersion, err := s.LoadVersion(ctx, key)
	if err != nil {
		return err
	}
	if !bytes.Equal(found, value) || foundVersion != v {
		return unsafe("a read does not show the last write")
	}
	objects, err := s.ListVersions(ctx, probeDir)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.Key == key && o.Version == v {
			return nil
		}
	}
	return unsafe("a listing does not show the last write and its version")
}

func mustConflict(err error, reason string) error {
	if err == nil {
		return unsafe(reason)
	}
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

func unsafe(reason string) error {
	return fmt.Errorf("%w: %w", ErrUnsafe, &fault{message: reason, hint: "use a storage with conditional writes, as S3, Google Cloud Storage and Azure Blob Storage have"})
}
