// Package transfer brings certificates into edge's storage and out of it: from
// and to PEM files, the storage of Caddy and everything else that is built on
// certmagic, and Kubernetes.
//
//	from, err := transfer.Open(ctx, "s3://caddy/prod?region=eu-west-1", store.Options{}) // or /var/lib/caddy
//	report, err := transfer.Import(ctx, from, v, transfer.Options{Wanted: bundles})
//	for _, e := range report.Entries {
//		fmt.Println(e.Source, e.Fingerprint, e.Action, e.Reason)
//	}
//
//	files, err := transfer.Export(c, transfer.Kubernetes, transfer.Form{Namespace: "web"})
//	err = transfer.Write(dir, files)
//
// A certificate that is imported under the id that the plan has for its names is
// one that edge need not order. What cannot be used is told in the report and
// keeps nothing else from being imported.
package transfer

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/store"
)

// Wanted is a certificate of the plan, as far as an import must know it.
type Wanted struct {
	ID        string
	Names     []string // sorted
	KeyType   config.KeyType
	Issuer    string // name in the configuration
	Directory string // of that issuer; "" for the internal one
}

// Options of an import. The zero value imports nothing, as nothing is wanted.
type Options struct {
	Wanted []Wanted     // what the configuration plans for
	All    bool         // import also what serves no name of Wanted
	DryRun bool         // write nothing, only say what would be done
	Owner  string       // written into what is imported
	Now    time.Time    // what is expired then is left; zero is time.Now()
	Logger *slog.Logger // nil is slog.Default()
}

func (o Options) now() time.Time {
	if o.Now.IsZero() {
		return time.Now()
	}
	return o.Now
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.Default()
	}
	return o.Logger
}

// Action is what became of a certificate that was found.
type Action string

// The actions.
const (
	Imported Action = "imported" // written, or would be but for DryRun
	Kept     Action = "kept"     // what is stored already is the same or newer
	Skipped  Action = "skipped"  // not wanted, or another one is better
	Failed   Action = "failed"   // cannot be used or written
)

// Entry is what an import did with one certificate, under one id.
type Entry struct {
	Source      string    `json:"source"`                // key in the source, or file
	Names       []string  `json:"names,omitempty"`       // in the certificate
	Fingerprint string    `json:"fingerprint,omitempty"` // SHA-256 of the leaf, in hex
	IssuedBy    string    `json:"issued_by,omitempty"`   // common name of the CA
	NotAfter    time.Time `json:"not_after,omitzero"`
	ID          string    `json:"id,omitempty"` // in edge's storage
	Action      Action    `json:"action"`
	Reason      string    `json:"reason,omitempty"` // one line; why not, or what to know
}

// Report is what an import did.
type Report struct {
	Entries []Entry        `json:"entries"` // by source, then id
	Count   map[Action]int `json:"count"`
}

// Open opens where certificates are to be imported from: the URL of a storage,
// or a directory that exists.
func Open(ctx context.Context, from string, o store.Options) (*store.Store, error) {
	if !strings.Contains(from, "://") {
		dir, err := filepath.Abs(from)
		if err != nil {
			return nil, err
		}
		from = (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String()
	}
	if u, err := url.Parse(from); err == nil && u.Scheme == "file" { // which store would make
		info, err := os.Stat(u.Path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("%s is no directory (a single certificate is imported from its chain and its key)", u.Path)
		}
	}
	return store.Open(ctx, from, o)
}
