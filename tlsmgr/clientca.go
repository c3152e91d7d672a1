package tlsmgr

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"edge/config"
)

// maxCASubjects bounds the subjects of the CAs of one file, in bytes: they are
// all sent to each client, in a list of at most 64 KiB (RFC 8446 section
// 4.2.4) inside a message that crypto/tls bounds by the same.
const maxCASubjects = 32 << 10

// A clientCA is what one file holds: the CAs of whose certificates a client has
// to show one. It is immutable.
type clientCA struct {
	path    string
	digest  string // of the certificates, whatever their order and the text between them
	pool    *x509.CertPool
	count   int
	expires time.Time // when the last of them has expired
}

// readClientCA reads a file of CA certificates. It is strict, because half a
// file would lock clients out, and what it would pass over in silence, such as
// a revocation list, somebody may rely on.
func readClientCA(path string) (*clientCA, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCAs(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	slices.SortFunc(certs, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	certs = slices.CompactFunc(certs, (*x509.Certificate).Equal)
	ca := &clientCA{path: path, pool: x509.NewCertPool(), count: len(certs)}
	digest, subjects := sha256.New(), 0
	for _, c := range certs {
		ca.pool.AddCert(c)
		_, _ = digest.Write(c.Raw) // DER says its own length
		subjects += len(c.RawSubject)
		if c.NotAfter.After(ca.expires) {
			ca.expires = c.NotAfter
		}
	}
	if subjects > maxCASubjects {
		return nil, fmt.Errorf("%s: the subjects of its %d CAs are larger than %d bytes (name the CAs that sign your clients' certificates, not all that exist)",
			path, len(certs), maxCASubjects)
	}
	ca.digest = hex.EncodeToString(digest.Sum(nil))
	return ca, nil
}

// parseCAs takes a PEM file apart. Text between the blocks is passed over.
func parseCAs(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	blocks := bytes.Count(data, []byte("-----BEGIN "))
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks--
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("has a block of type %q (want nothing but CA certificates; edge reads no revocation lists)", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w (want PEM certificates of CAs)", len(certs)+1, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d, %q, is not a CA's (want the CA that signs your clients' certificates)", len(certs)+1, c.Subject)
		}
		certs = append(certs, c)
	}
	switch {
	case blocks > 0:
		return nil, errors.New("a PEM block in it is damaged or not complete (copy the file again)")
	case len(certs) == 0:
		return nil, errors.New("no certificate in it (want PEM certificates of CAs)")
	}
	return certs, nil
}

// clientCAFiles are the files that policies of cfg's routes name.
func clientCAFiles(cfg *config.Config) []string {
	var paths []string
	for _, r := range cfg.Routes {
		if r.TLS.ClientCA != "" {
			paths = append(paths, r.TLS.ClientCA)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// readClientCAs reads the client CAs of cfg by path; the error joins all
// problems.
func readClientCAs(cfg *config.Config) (map[string]*clientCA, error) {
	out := map[string]*clientCA{}
	var problems []error
	for _, path := range clientCAFiles(cfg) {
		ca, err := readClientCA(path)
		if err != nil {
			problems = append(problems, fmt.Errorf("client_certificates.ca: %w", err))
			continue
		}
		out[path] = ca
	}
	return out, errors.Join(problems...)
}

// prepareSides reads the client CAs of cfg and makes the TLS sides of its
// listeners. What it warns of is legal.
func (m *Manager) prepareSides(cfg *config.Config) (*sides, []config.Problem, error) {
	cas, err := readClientCAs(cfg)
	if err != nil {
		return nil, nil, err
	}
	s, err := m.newSides(cfg, cas)
	return s, expiredClientCAs(cfg, cas, time.Now()), err
}

// clientCADirs are the directories to watch for changes of client CAs.
func clientCADirs(cfg *config.Config) []string {
	dirs := clientCAFiles(cfg)
	for i, path := range dirs {
		dirs[i] = filepath.Dir(path)
	}
	return dirs
}

// expiredClientCAs are warnings of files by which nobody is let in any more.
func expiredClientCAs(cfg *config.Config, cas map[string]*clientCA, now time.Time) []config.Problem {
	var out []config.Problem
	for _, path := range slices.Sorted(maps.Keys(cas)) {
		if ca := cas[path]; !now.Before(ca.expires) {
			out = append(out, config.Problem{
				File: cfg.Path, Path: "policies", Message: "all client CAs in " + path + " have expired, so every client certificate is refused",
				Hint: "put the CA's new certificate there; the file is watched",
			})
		}
	}
	return out
}

// reloadClientCAs reads the client CAs of st again. What changed holds for
// handshakes from now on, and connections and tickets of before are worth
// nothing any more. Where a file is bad its last good CAs stay. It reports
// whether something is newly bad, and worth a second look before a warning.
func (m *Manager) reloadClientCAs(ctx context.Context, st *state, bad map[string]complaint) (again bool) {
	old := st.sides.Load()
	if old == nil {
		return false
	}
	cas, changed := map[string]*clientCA{}, []*clientCA(nil)
	for path, was := range old.cas {
		ca, err := readClientCA(path)
		if err != nil {
			again = m.complain(ctx, bad, path, err) || again
			ca = was
		} else {
			delete(bad, complaintOf(path))
		}
		if cas[path] = ca; ca.digest != was.digest {
			changed = append(changed, ca)
		}
	}
	if len(changed) == 0 {
		return again
	}
	next, err := m.newSides(st.cfg, cas)
	if err != nil {
		return m.complain(ctx, bad, "", err) || again
	}
	delete(bad, complaintOf(""))
	st.sides.Store(next)
	for _, ca := range changed {
		m.log.LogAttrs(ctx, slog.LevelInfo, "client CAs changed, connections and sessions of before are not good any more",
			slog.String("file", ca.path), slog.Int("cas", ca.count))
	}
	return again
}

// complaintOf is the key of a client CA file among complaints; "" is all of
// them together. No certificate has such a name.
func complaintOf(path string) string { return "client CA " + path }

func (m *Manager) complain(ctx context.Context, bad map[string]complaint, path string, err error) (again bool) {
	key := complaintOf(path)
	was := bad[key]
	if was.text != err.Error() {
		bad[key] = complaint{text: err.Error()}
		return true
	}
	if !was.said {
		bad[key] = complaint{text: was.text, said: true}
		m.log.LogAttrs(ctx, slog.LevelWarn, "client CA file is not usable, the last good CAs stay", slog.Any("error", oneError(err)))
	}
	return false
}
