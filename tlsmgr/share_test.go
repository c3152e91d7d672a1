package tlsmgr

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
)

// twins are two replicas with one configuration; what each shares is set.
func twins(t *testing.T, first, second [][]byte) (a, b *doors) {
	t.Helper()
	a = newDoors(t, nil)
	b = &doors{Manager: New(Options{}), server: a.server, clients: a.clients, file: a.file, cfg: a.cfg}
	commit(t, b.Manager, a.cfg)
	a.tickets.share(first)
	b.tickets.share(second)
	return a, b
}

func secretOf(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// Replicas that have a secret in common resume each other's sessions, where it
// is safe that who has the secret can make and open tickets.
func TestReplicasResumeEachOthersSessions(t *testing.T) {
	ours, other := secretOf(1), secretOf(2)
	for _, c := range []struct {
		what          string
		first, second [][]byte
		name          string
		version       uint16
		resumed       bool
	}{
		{"one secret", [][]byte{ours}, [][]byte{ours}, "open.a.test", tls.VersionTLS13, true},
		{"none", nil, nil, "open.a.test", tls.VersionTLS13, false},
		{"the first has none", nil, [][]byte{ours}, "open.a.test", tls.VersionTLS13, false},
		{"the second has none", [][]byte{ours}, nil, "open.a.test", tls.VersionTLS13, false},
		{"two secrets", [][]byte{ours}, [][]byte{other}, "open.a.test", tls.VersionTLS13, false},
		{"the first has not rotated yet", [][]byte{ours}, [][]byte{other, ours}, "open.a.test", tls.VersionTLS13, true},
		{"the first has rotated already", [][]byte{other, ours}, [][]byte{ours}, "open.a.test", tls.VersionTLS13, false},
		{"TLS 1.2, whose tickets open what was recorded", [][]byte{ours}, [][]byte{ours}, "open.a.test", tls.VersionTLS12, false},
		{"a session with a client certificate", [][]byte{ours}, [][]byte{ours}, "closed.a.test", tls.VersionTLS13, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			a, b := twins(t, c.first, c.second)
			good := a.clients.goodClient(t)
			session := &oneSession{}
			if _, err := a.dial(t, "https", c.name, c.version, good, session); err != nil {
				t.Fatal(err)
			}
			theirs := copyOf(session)() // for b; a's own has to be good still
			if state, err := a.dial(t, "https", c.name, c.version, good, session); err != nil || !state.DidResume {
				t.Errorf("by itself: resumed %v, %v; want true", state.DidResume, err)
			}
			state, err := b.dial(t, "https", c.name, c.version, good, theirs)
			if err != nil || state.DidResume != c.resumed {
				t.Errorf("by the other: resumed %v, %v; want %v", state.DidResume, err, c.resumed)
			}
		})
	}
}

// someSession is one that a handshake made: no other can be put into a ticket.
func someSession(t *testing.T) *tls.SessionState {
	t.Helper()
	m, ca := policyManager(t, nil)
	cache := &oneSession{}
	cfg := client(ca, "old.a.test")
	cfg.ClientSessionCache = cache
	if _, err := shake(t, m, cfg); err != nil {
		t.Fatal(err)
	}
	_, session, err := cache.session.ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// A key makes tickets for its day and opens them for a week more, by clocks that
// differ by less than a day.
func TestSharedTicketKeysChangeDailyAndEndAfterAWeek(t *testing.T) {
	secrets, some := [][]byte{secretOf(1)}, someSession(t)
	made := time.Date(2026, 3, 4, 23, 0, 0, 0, time.UTC)
	for after, opens := range map[time.Duration]bool{
		-22 * time.Hour:     true,
		-24 * time.Hour:     true,
		-2 * 24 * time.Hour: false,
		30 * time.Minute:    true,
		2 * time.Hour:       true, // the next day
		7 * 24 * time.Hour:  true,
		8 * 24 * time.Hour:  false,
	} {
		var a, b tickets
		a.share(secrets)
		b.share(secrets)
		ticket, err := a.shared(made).EncryptTicket(tls.ConnectionState{}, some)
		if err != nil {
			t.Fatal(err)
		}
		session, err := b.shared(made.Add(after)).DecryptTicket(ticket, tls.ConnectionState{})
		if err != nil || (session != nil) != opens {
			t.Errorf("after %v: opened %v, %v; want %v", after, session != nil, err, opens)
		}
	}
	var a tickets
	a.share(secrets)
	today := a.shared(made)
	if again := a.shared(made.Add(time.Minute)); again != today {
		t.Error("the keys of a day are made more than once")
	}
	if next := a.shared(made.Add(time.Hour)); next == today {
		t.Error("the keys of a day are those of the day before")
	}
}

// A session may be resumed for a week, not longer: crypto/tls sees to it.
func TestSharedSessionEndsAfterAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ca := policyManager(t, func(cfg *config.Config) {
			own := newTestCA(t)
			chain, key := own.issue(t, config.P256, time.Now(), time.Now().Add(900*time.Hour), "a.test")
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "pem"), chain)
			writeFile(t, filepath.Join(dir, "key"), key)
			cfg.Certificates["file"].File = &config.CertificateFile{
				Certificate: filepath.Join(dir, "pem"), PrivateKey: config.Secret{Ref: "file:" + filepath.Join(dir, "key")},
			}
		})
		m.tickets.share([][]byte{secretOf(1)})
		session := &oneSession{}
		cfg := client(ca, "a.test")
		cfg.ClientSessionCache, cfg.InsecureSkipVerify = session, true
		shakeIn := func(what string, resumed bool) {
			t.Helper()
			cfg.ClientSessionCache = copyOf(session)()
			if session.session == nil {
				cfg.ClientSessionCache = session
			}
			state, err := shake(t, m, cfg)
			if err != nil || state.DidResume != resumed {
				t.Errorf("%s: resumed %v, %v; want %v", what, state.DidResume, err, resumed)
			}
		}
		shakeIn("at first", false)
		shakeIn("at once", true)
		time.Sleep(6*24*time.Hour + 23*time.Hour)
		shakeIn("within a week", true)
		time.Sleep(2 * time.Hour)
		shakeIn("after a week", false)
	})
}

// Replicas that seal with one key share its secret, by configuration alone.
func TestReplicasOfASealedStorageShareTickets(t *testing.T) {
	t.Parallel()
	cfg := ownCA(t, 7*24*time.Hour, "a.example.internal")
	key := filepath.Join(t.TempDir(), "key")
	writeFile(t, key, base64.StdEncoding.EncodeToString(secretOf(7)))
	for _, sealed := range []bool{false, true} {
		if sealed {
			cfg.Storage.Keys = []config.Secret{{Ref: "file:" + key}}
		}
		first, second := start(t, cfg, nil), start(t, cfg, nil)
		for _, m := range []*replica{first, second} {
			wait(t, func() bool { return len(missing(m)) == 0 })
		}
		client := &tls.Config{ServerName: "a.example.internal", InsecureSkipVerify: true, ClientSessionCache: &oneSession{}}
		if _, err := shake(t, first.Manager, client); err != nil {
			t.Fatal(err)
		}
		state, err := shake(t, second.Manager, client)
		if err != nil || state.DidResume != sealed {
			t.Errorf("sealed %v: resumed by the other replica %v, %v", sealed, state.DidResume, err)
		}
	}
}

func TestTicketsAreMadeByManyHandshakesAtMidnight(t *testing.T) {
	var a tickets
	a.share([][]byte{secretOf(1)})
	some := someSession(t)
	midnight := time.Date(2026, 3, 5, 0, 0, 0, 0, time.UTC)
	var work sync.WaitGroup
	for n := range 8 {
		work.Go(func() {
			at := midnight.Add(time.Duration(n%2) * -time.Second)
			ticket, err := a.shared(at).EncryptTicket(tls.ConnectionState{}, some)
			if err != nil {
				t.Error(err)
				return
			}
			if s, err := a.shared(midnight).DecryptTicket(ticket, tls.ConnectionState{}); s == nil || err != nil {
				t.Errorf("made at %v: %v, %v", at, s, err)
			}
		})
	}
	work.Wait()
}
