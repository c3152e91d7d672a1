package tlsmgr

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
)

func TestStatusSaysWhatEachCertificateIsDoing(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	valid := ca.certificate(t, "b", config.P256, now.Add(-time.Hour), now.Add(time.Hour), "a.test")
	old := ca.certificate(t, "b", config.P256, now.Add(-2*time.Hour), now.Add(-time.Hour), "a.test")
	soon := now.Add(time.Minute)
	for name, c := range map[string]struct {
		cert  *certificate
		job   *job
		state State
		next  time.Time
		err   string
	}{
		"not begun":             {nil, nil, StateMissing, time.Time{}, ""},
		"served":                {valid, &job{}, StateValid, renewAt(valid), ""},
		"served but expired":    {old, nil, StateExpired, renewAt(old), ""},
		"ordered":               {nil, &job{busy: true, ordering: true}, StateOrdering, time.Time{}, ""},
		"renewed":               {valid, &job{busy: true, ordering: true}, StateRenewing, renewAt(valid), ""},
		"left to another":       {nil, &job{busy: true, waiting: func() {}}, StateWaiting, time.Time{}, ""},
		"renewed by another":    {valid, &job{busy: true, waiting: func() {}}, StateValid, renewAt(valid), ""},
		"failed":                {nil, &job{err: errors.New("no"), failures: 2, next: soon}, StateFailed, soon, "no"},
		"failed to renew":       {valid, &job{err: errors.New("no"), failures: 2, next: soon}, StateFailed, soon, "no"},
		"tried again after all": {nil, &job{busy: true, ordering: true, err: errors.New("no"), failures: 2}, StateOrdering, time.Time{}, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(Options{})
			b := Bundle{ID: "b", Names: []string{"a.test"}, Issuer: "i"}
			m.state.Store(&state{cfg: &config.Config{}, plan: &Planned{Bundles: []Bundle{b}}, bundles: map[string]*Bundle{"b": &b}})
			if c.cert != nil {
				m.loaded["b"] = &stored{version: "1", cert: c.cert}
			}
			if c.job != nil {
				m.jobs["b"] = c.job
			}
			status := m.Status()
			s := status.Certificates[0]
			if s.State != c.state || !s.NextAttempt.Equal(c.next) || s.Error != c.err {
				t.Errorf("got %s, next %s, error %q; want %s, %s, %q", s.State, s.NextAttempt, s.Error, c.state, c.next, c.err)
			}
			if missing := len(status.Missing()) == 1; missing != (c.cert == nil) {
				t.Errorf("missing %v, want %v", status.Missing(), c.cert == nil)
			}
		})
	}
}

func TestStatusIsSortedAndHasNoSecret(t *testing.T) {
	ca := newTestCA(t)
	cfg := &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}},
		Issuers:      map[string]*config.Issuer{"i": {Name: "i", Directory: "https://ca.test/dir"}},
		Storage:      config.Storage{URL: "file://" + t.TempDir()},
		Certificates: map[string]*config.Certificate{},
	}
	for _, id := range []string{"z", "b", "m"} {
		cfg.Certificates[id] = &config.Certificate{Name: id, File: ca.files(t, t.TempDir(), id+".test")}
	}
	for _, id := range []string{"y", "a"} {
		cfg.Certificates[id] = &config.Certificate{Name: id, Names: []string{id + ".test"}, Issuers: []string{"i"}, KeyTypes: []config.KeyType{config.P256}}
	}
	m := New(Options{Logger: (&logs{}).logger()})
	commit(t, m, cfg)
	defer m.close()
	status := m.Status()
	ids := []string{}
	for _, c := range status.Certificates {
		ids = append(ids, c.ID)
	}
	if want := []string{"a", "b", "m", "y", "z"}; !slices.Equal(ids, want) {
		t.Errorf("order %v, want %v", ids, want)
	}
	if got, want := status.Missing(), []string{"a", "y"}; !slices.Equal(got, want) {
		t.Errorf("missing %v, want %v", got, want)
	}
	text, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "PRIVATE KEY") || strings.Contains(string(text), "0001-01-01") {
		t.Errorf("status %s", text)
	}
}
