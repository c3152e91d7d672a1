package storetest

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"edge/tlsmgr/store"
)

// testKeys is the contract of certmagic.Storage.
func testKeys(t *testing.T, open opener) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, *store.Store)
	}{
		{"LoadReturnsTheLastStore", loadReturnsLast},
		{"OtherHandleReadsTheWriteAtOnce", nil},
		{"MissingKeysAreNotExist", missingKeys},
		{"DirectoriesAreNotObjects", directories},
		{"PrefixIsByComponent", prefixByComponent},
		{"ListOneLevelOrAll", listLevels},
		{"DeleteIsIdempotentAndRecursive", deletes},
		{"StatDescribesObjects", stats},
		{"LargeAndEmptyObjects", sizes},
		{"OddNamesSurvive", oddNames},
		{"BadKeysAreRefused", badKeys},
		{"EndedContextIsHonoured", endedContext},
		{"ClosedStoreRefuses", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t)
			if c.test == nil {
				readAfterWrite(t, p)
				return
			}
			c.test(t, p.handle(t, "a"))
		})
	}
}

func loadReturnsLast(t *testing.T, s *store.Store) {
	t.Helper()
	for _, value := range []string{"one", "two", "", "one"} {
		must(t, s.Store(t.Context(), "dir/key", []byte(value)))
		got, err := s.Load(t.Context(), "dir/key")
		if err != nil || string(got) != value {
			t.Errorf("got %q, %v; want %q", got, err, value)
		}
	}
}

func readAfterWrite(t *testing.T, p *place) {
	t.Helper()
	a, b := p.handle(t, "a"), p.handle(t, "b")
	for _, value := range []string{"one", "two"} {
		must(t, a.Store(t.Context(), "key", []byte(value)))
		got, err := b.Load(t.Context(), "key")
		if err != nil || string(got) != value {
			t.Errorf("got %q, %v; want %q", got, err, value)
		}
	}
	must(t, a.Delete(t.Context(), "key"))
	_, err := b.Load(t.Context(), "key")
	wantMissing(t, "load after another handle's delete", err)
}

func missingKeys(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Store(t.Context(), "object", nil))
	for _, key := range []string{"missing", "object/below", "deep/er/missing"} {
		_, err := s.Load(t.Context(), key)
		wantMissing(t, "load "+key, err)
		_, err = s.Stat(t.Context(), key)
		wantMissing(t, "stat "+key, err)
		_, err = s.List(t.Context(), key, true)
		wantMissing(t, "list "+key, err)
		if s.Exists(t.Context(), key) {
			t.Errorf("%s exists", key)
		}
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %s: %v, want nil", key, err)
		}
		objects, err := s.ListVersions(t.Context(), key)
		if err != nil || len(objects) > 0 {
			t.Errorf("versions below %s: got %v, %v; want none", key, objects, err)
		}
	}
}

func directories(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Store(t.Context(), "a/b/c", []byte("x")))
	for _, dir := range []string{"a", "a/b"} {
		if !s.Exists(t.Context(), dir) {
			t.Errorf("directory %s does not exist", dir)
		}
		info, err := s.Stat(t.Context(), dir)
		if err != nil || info.IsTerminal || info.Key != dir {
			t.Errorf("stat %s: got %+v, %v; want a directory", dir, info, err)
		}
		_, err = s.Load(t.Context(), dir)
		wantMissing(t, "load "+dir, err)
	}
	must(t, s.Delete(t.Context(), "a/b/c"))
	for _, dir := range []string{"a", "a/b"} {
		if s.Exists(t.Context(), dir) {
			t.Errorf("directory %s outlives its last object", dir)
		}
	}
}

func prefixByComponent(t *testing.T, s *store.Store) {
	t.Helper()
	for _, key := range []string{"ab/c", "abc", "a-b"} {
		must(t, s.Store(t.Context(), key, nil))
	}
	if s.Exists(t.Context(), "a") {
		t.Error(`"a" exists though no component is "a"`)
	}
	must(t, s.Delete(t.Context(), "a"))
	must(t, s.Delete(t.Context(), "ab/"+"c/d"))
	got, err := s.List(t.Context(), "", true)
	must(t, err)
	wantKeys(t, "after deletes of prefixes", got, "a-b", "ab", "ab/c", "abc")
}

func listLevels(t *testing.T, s *store.Store) {
	t.Helper()
	got, err := s.List(t.Context(), "", false)
	if err != nil || len(got) > 0 {
		t.Errorf("empty root: got %q, %v", got, err)
	}
	for _, key := range []string{"d/1", "d/2/x", "d/2/y/z", "d-e", "f"} {
		must(t, s.Store(t.Context(), key, nil))
	}
	for _, c := range []struct {
		dir       string
		recursive bool
		want      []string
	}{
		{"", false, []string{"d", "d-e", "f"}},
		{"", true, []string{"d", "d-e", "d/1", "d/2", "d/2/x", "d/2/y", "d/2/y/z", "f"}},
		{"d", false, []string{"d/1", "d/2"}},
		{"d", true, []string{"d/1", "d/2", "d/2/x", "d/2/y", "d/2/y/z"}},
		{"d/2", false, []string{"d/2/x", "d/2/y"}},
		{"f", true, nil},
	} {
		got, err := s.List(t.Context(), c.dir, c.recursive)
		must(t, err)
		wantKeys(t, "list "+c.dir, got, c.want...)
	}
}

func deletes(t *testing.T, s *store.Store) {
	t.Helper()
	for _, key := range []string{"d/1", "d/2/x", "d/2/y", "e"} {
		must(t, s.Store(t.Context(), key, nil))
	}
	for range 2 {
		must(t, s.Delete(t.Context(), "d"))
		must(t, s.Delete(t.Context(), "never"))
	}
	got, err := s.List(t.Context(), "", true)
	must(t, err)
	wantKeys(t, "left", got, "e")
	must(t, s.Delete(t.Context(), "e"))
	if s.Exists(t.Context(), "e") {
		t.Error("e exists after its delete")
	}
	must(t, s.Store(t.Context(), "d/1", nil)) // the directory can come back
}

func stats(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Store(t.Context(), "d/key", []byte("12345")))
	must(t, s.Store(t.Context(), "d/key-2", nil)) // a neighbour in the listing
	info, err := s.Stat(t.Context(), "d/key")
	must(t, err)
	if info.Key != "d/key" || info.Size != 5 || !info.IsTerminal || info.Modified.IsZero() {
		t.Errorf("got %+v, want key d/key of 5 bytes with a time", info)
	}
}

func sizes(t *testing.T, s *store.Store) {
	t.Helper()
	largest := bytes.Repeat([]byte("0123456789abcdef"), store.MaxObject/16)
	must(t, s.Store(t.Context(), "large", largest))
	got, err := s.Load(t.Context(), "large")
	must(t, err)
	if !bytes.Equal(got, largest) {
		t.Errorf("got %d bytes, want the %d that were stored", len(got), len(largest))
	}
	larger := append(slices.Clone(largest), 'x')
	wantErr(t, "store of more", s.Store(t.Context(), "large", larger), store.ErrTooLarge)
	_, err = s.Swap(t.Context(), "larger", larger, "")
	wantErr(t, "swap of more", err, store.ErrTooLarge)
}

func oddNames(t *testing.T, s *store.Store) {
	t.Helper()
	keys := []string{
		"acme/ca.example-directory/users/a_plus_b@example.com/a.json", "certificates/wildcard_.example.com.crt",
		"with space/ä€𝄞", "a+b&c=d?e#f%2Fg", ".hidden/..a/b..", strings.Repeat("n", 255) + "/x",
		strings.Repeat(strings.Repeat("p", 127)+"/", 4)[:store.MaxKey-1],
	}
	for _, key := range keys {
		must(t, s.Store(t.Context(), key, []byte(key)))
	}
	for _, key := range keys {
		got, err := s.Load(t.Context(), key)
		if err != nil || string(got) != key {
			t.Errorf("load: got %q, %v; want %q", got, err, key)
		}
	}
	objects, err := s.ListVersions(t.Context(), "")
	if err != nil || len(objects) != len(keys) {
		t.Errorf("got %d objects, %v; want %d", len(objects), err, len(keys))
	}
}

func badKeys(t *testing.T, s *store.Store) {
	t.Helper()
	for _, key := range []string{"", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/./b", `a\b`, "a\x00b", "\xff", strings.Repeat("a/", 300)} {
		wantErr(t, "store", s.Store(t.Context(), key, nil), store.ErrInvalidKey)
		_, err := s.Load(t.Context(), key)
		wantErr(t, "load", err, store.ErrInvalidKey)
		_, err = s.Stat(t.Context(), key)
		wantErr(t, "stat", err, store.ErrInvalidKey)
		wantErr(t, "delete", s.Delete(t.Context(), key), store.ErrInvalidKey)
		_, err = s.Swap(t.Context(), key, nil, "")
		wantErr(t, "swap", err, store.ErrInvalidKey)
	}
}

func endedContext(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Store(t.Context(), "key", nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Load(ctx, "key")
	wantErr(t, "load", err, context.Canceled)
	wantErr(t, "store", s.Store(ctx, "key", nil), context.Canceled)
	wantErr(t, "delete", s.Delete(ctx, "key"), context.Canceled)
	_, err = s.List(ctx, "", true)
	wantErr(t, "list", err, context.Canceled)
	_, err = s.Stat(ctx, "key")
	wantErr(t, "stat", err, context.Canceled)
	_, err = s.Swap(ctx, "new", nil, "")
	wantErr(t, "swap", err, context.Canceled)
	wantErr(t, "lock", s.Lock(ctx, "lease"), context.Canceled)
	wantErr(t, "probe", s.Probe(ctx), context.Canceled)
}

func closed(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Store(t.Context(), "key", nil))
	must(t, s.Close())
	must(t, s.Close())
	_, err := s.Load(t.Context(), "key")
	wantErr(t, "load", err, store.ErrClosed)
	wantErr(t, "store", s.Store(t.Context(), "key", nil), store.ErrClosed)
	wantErr(t, "lock", s.Lock(t.Context(), "lease"), store.ErrClosed)
	_, err = s.ListVersions(t.Context(), "")
	wantErr(t, "list", err, store.ErrClosed)
}
