package tlsmgr

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"edge/config"
	"edge/hostname"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

const (
	answerPath    = "/.well-known/acme-challenge/" // RFC 8555 section 8.3
	answerLife    = time.Hour                      // of an answer that nobody took back
	answerTimeout = 5 * time.Second                // to look one up in the storage; CAs wait ten
	maxToken      = 128                            // bytes; CAs send 43
	maxAnswers    = 1024                           // remembered, found or not
	maxLookups    = 8                              // in the storage at once; clients cause them
	missLife      = 2 * time.Second                // of an answer that was not found, from when it was looked for
)

// answers are what this process tells CAs that come to look: for HTTP-01 by
// token, for TLS-ALPN-01 by name. A CA may come to any replica, so they stand in
// the storage while an order is open, and are looked up there.
type answers struct {
	lookups chan struct{} // held while looking in the storage
	strange chan struct{} // likewise, for names that this process does not know

	mu    sync.Mutex
	known map[string]answer // by id
}

// An answer is a key authorization, or the knowledge that there is none.
type answer struct {
	text    string // "" is none
	expires time.Time
}

func newAnswers() *answers {
	return &answers{lookups: make(chan struct{}, maxLookups), strange: make(chan struct{}, 1), known: map[string]answer{}}
}

// answer stores what the CA will ask for, and takes it back.
func (o *order) answer(ctx context.Context, kind config.Challenge, proofs []acme.Proof) (withdraw func(), err error) {
	a := o.attempt()
	records := map[string]*vault.Challenge{}
	for _, p := range proofs {
		c := p.Challenges[kind]
		record := &vault.Challenge{
			Kind: kind, Token: c.Token, KeyAuthorization: c.KeyAuthorization, Name: p.Name, Expires: time.Now().Add(answerLife).UTC(),
		}
		if !slices.Contains(a.Tokens, record.ID()) {
			a.Tokens = append(a.Tokens, record.ID())
		}
		records[record.ID()] = record
	}
	if err := o.m.save(ctx, o.vault, o.journal); err != nil {
		return nil, err
	}
	for id, c := range records {
		if err := overwrite(ctx, o.vault, id, c); err != nil {
			return nil, fmt.Errorf("store the answer for the CA: %w", err)
		}
		o.m.answers.put(id, c.KeyAuthorization, time.Now().Add(answerLife))
	}
	if err := forgotten(ctx, kind); err != nil {
		return nil, err
	}
	o.say(ctx, StepPresent, "%d answers", len(records))
	return func() {
		if errors.Is(context.Cause(ctx), store.ErrLeaseLost) { // an heir may need them, or store others
			for id := range records {
				o.m.answers.drop(id)
			}
			return
		}
		o.m.retract(ctx, o.vault, a.Tokens)
		a.Tokens = nil
	}, nil
}

// forgotten waits until no replica can remember that there was no answer. A
// token is the CA's secret until then, but anybody can ask for a name.
func forgotten(ctx context.Context, kind config.Challenge) error {
	if kind != config.TLSALPN01 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(missLife):
		return nil
	}
}

// overwrite saves x whatever is stored.
func overwrite[T vault.Object](ctx context.Context, v *vault.Vault, id string, x *T) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	_, _, err := vault.Update(ctx, v, id, func(stored *T) (write bool, err error) {
		*stored = *x
		return true, nil
	})
	return err
}

// retract takes answers back.
func (m *Manager) retract(ctx context.Context, v *vault.Vault, ids []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	for _, id := range ids {
		m.answers.drop(id)
		if err := v.Store().Delete(ctx, vault.Challenges.Key(id)); err != nil {
			m.log.LogAttrs(ctx, slog.LevelDebug, "answer for the CA left behind, it expires", slog.Any("error", err))
		}
	}
}

// put notes an answer. What was found out while this process stored the answer
// itself is older than that.
func (a *answers) put(id, text string, expires time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was, ok := a.known[id]; ok && expires.Before(was.expires) {
		return
	}
	if len(a.known) >= maxAnswers {
		now := time.Now()
		for other, x := range a.known { // what nobody waits for first
			if x.text == "" || now.After(x.expires) {
				delete(a.known, other)
			}
		}
		if len(a.known) >= maxAnswers {
			return
		}
	}
	a.known[id] = answer{text, expires}
}

func (a *answers) drop(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.known, id)
}

func (a *answers) get(id string) (text string, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, ok := a.known[id]
	return x.text, ok && time.Now().Before(x.expires)
}

// answerFor finds an answer here or in the storage; "" is none.
func (m *Manager) answerFor(ctx context.Context, lookups chan struct{}, kind config.Challenge, what string) string {
	id := vault.ChallengeID(kind, what)
	if text, known := m.answers.get(id); known {
		return text
	}
	v := m.vaultInUse()
	if v == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	select {
	case lookups <- struct{}{}:
		defer func() { <-lookups }()
	case <-ctx.Done():
		return ""
	}
	until := time.Now().Add(missLife)
	c, _, err := vault.Load[vault.Challenge](ctx, v, id)
	if err != nil || c.Kind != kind || time.Now().After(c.Expires) {
		m.answers.put(id, "", until)
		return ""
	}
	m.answers.put(id, c.KeyAuthorization, until)
	return c.KeyAuthorization
}

// proves reports whether an issuer in force uses challenges of a kind. Without
// one nobody outside can cause a look into the storage.
func (st *state) proves(kind config.Challenge) bool {
	for _, i := range st.cfg.Issuers {
		if i.Internal == nil && challengeOf(i) == kind {
			return true
		}
	}
	return false
}

// wants reports whether certificates are kept for name.
func (st *state) wants(name string) bool {
	_, ok := slices.BinarySearch(st.wanted, name)
	return ok
}

// HTTP01 answers the CA's requests for HTTP-01 (RFC 8555 section 8.3) and leaves
// all others to next. It is for the listener on port 80.
func (m *Manager) HTTP01(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.URL.Path, answerPath)
		if !ok || !isToken(token) || r.Method != http.MethodGet && r.Method != http.MethodHead || !m.state.Load().proves(config.HTTP01) {
			next.ServeHTTP(w, r)
			return
		}
		text := m.answerFor(r.Context(), m.answers.lookups, config.HTTP01, token)
		if text == "" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write([]byte(text)) //nolint:gosec // G705: what the CA gave us, as no document; it may have gone
	})
}

// isToken reports whether s has the form of a token: base64url (RFC 8555 section 8).
func isToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// alpn is the configuration for a handshake by which a CA validates TLS-ALPN-01
// (RFC 8737): nil for every other one, and a refusal when there is no answer.
func (m *Manager) alpn(hello *tls.ClientHelloInfo) *tls.Config {
	if !slices.Equal(hello.SupportedProtos, []string{acme.ALPNProtocol}) {
		return nil
	}
	name, ok := challengedName(hello.ServerName)
	st := m.state.Load()
	if !ok || !st.proves(config.TLSALPN01) {
		return m.refuse
	}
	lookups := m.answers.lookups
	if !st.wants(name) { // another replica may; many such names are a stranger's
		lookups = m.answers.strange
	}
	text := m.answerFor(hello.Context(), lookups, config.TLSALPN01, name)
	if text == "" {
		return m.refuse
	}
	cert, err := acme.ALPNCertificate(name, text)
	if err != nil {
		m.log.LogAttrs(hello.Context(), slog.LevelWarn, "no certificate for the CA's validation", slog.Any("error", err))
		return m.refuse
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{acme.ALPNProtocol}, SessionTicketsDisabled: true, Certificates: []tls.Certificate{*cert},
	}
}

// challengedName is the identifier that a CA's server name stands for: a host
// name, or an address in its reverse form (RFC 8738 section 6).
func challengedName(serverName string) (string, bool) {
	name, ok := hostname.FromHost(serverName)
	if !ok {
		return "", false
	}
	if labels, isV4 := strings.CutSuffix(name, ".in-addr.arpa"); isV4 {
		parts := strings.Split(labels, ".")
		slices.Reverse(parts)
		addr, err := netip.ParseAddr(strings.Join(parts, "."))
		return addr.String(), err == nil
	}
	if nibbles, isV6 := strings.CutSuffix(name, ".ip6.arpa"); isV6 {
		parts := strings.Split(nibbles, ".")
		slices.Reverse(parts)
		raw, err := hex.DecodeString(strings.Join(parts, ""))
		addr, fits := netip.AddrFromSlice(raw)
		return addr.String(), err == nil && fits
	}
	return name, true
}
