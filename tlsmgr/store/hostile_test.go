package store_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"edge/tlsmgr/store"
)

// flood answers with a body that does not end, until the client has enough.
type flood struct {
	start string
	rest  string
	code  int
	sent  atomic.Int64
}

func (f *flood) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(f.code)
	n, err := io.WriteString(w, f.start)
	rest := strings.Repeat(f.rest, 64<<10/len(f.rest))
	for err == nil && f.sent.Add(int64(n)) < 1<<30 {
		n, err = io.WriteString(w, rest)
	}
}

// Servers that an import reads from are not the operator's.
func TestAnswersWithoutEndAreNotRead(t *testing.T) {
	for name, f := range map[string]*flood{
		"listing": {start: `<?xml version="1.0"?><ListBucketResult>`, rest: `<Contents><Key>a</Key></Contents>`, code: http.StatusOK},
		"text":    {start: `<?xml version="1.0"?><ListBucketResult><Name>`, rest: "a", code: http.StatusOK},
		"error":   {start: `<?xml version="1.0"?><Error><Message>`, rest: "a", code: http.StatusForbidden},
	} {
		for kind, open := range map[string]func(*testing.T, http.Handler) *store.Store{"s3": newS3Store, "azblob": newAzureStore} {
			t.Run(name+" of "+kind, func(t *testing.T) {
				f := &flood{start: f.start, rest: f.rest, code: f.code}
				_, err := open(t, f).ListVersions(t.Context(), "")
				if err == nil || len(err.Error()) > 1000 {
					t.Errorf("got %.1000v", err)
				}
				if sent := f.sent.Load(); sent > 128<<20 {
					t.Errorf("%d MiB were read", sent>>20)
				}
			})
		}
	}
}

// A token that is new each time leads nowhere.
func TestListingOfEmptyPagesWithoutEndIsRefused(t *testing.T) {
	var pages atomic.Int64
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuationToken></ListBucketResult>`, pages.Add(1))
	}))
	if _, err := s.ListVersions(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "how a long listing goes on") {
		t.Errorf("got %v after %d pages", err, pages.Load())
	}
}
