package tlsmgr

import (
	"errors"
	"testing"
	"time"

	"edge/config"
)

func TestNeedsSaysWhy(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	have := func(left time.Duration, names ...string) *stored {
		c := ca.certificate(t, "b", config.P256, now.Add(left-90*24*time.Hour), now.Add(left), names...)
		c.object.Directory = "https://ca.test/dir"
		return &stored{version: "1", cert: c}
	}
	const long = 80 * 24 * time.Hour
	st := &state{cfg: &config.Config{Issuers: map[string]*config.Issuer{"ca": {Name: "ca", Directory: "https://ca.test/dir"}}}}
	b := Bundle{ID: "b", Names: []string{"a.test", "b.test"}, Issuer: "ca", KeyType: config.P256}
	torn, gone, elsewhere, rsa := have(long, b.Names...), have(long, b.Names...), have(long, b.Names...), have(long, b.Names...)
	torn.err, gone.version = errors.New("torn"), ""
	elsewhere.cert.object.Directory = "https://other.test/dir"
	rsa.cert.object.KeyType = config.RSA2048
	for name, c := range map[string]struct {
		have *stored
		want need
	}{
		"nothing is stored":     {nil, needMissing},
		"the object is gone":    {gone, needMissing},
		"the object is torn":    {torn, needMissing},
		"as planned":            {have(long, "a.test", "b.test"), needNothing},
		"more names":            {have(long, "a.test", "b.test", "c.test"), needNothing},
		"a name is missing":     {have(long, "a.test"), needNames},
		"of another CA":         {elsewhere, needIssuer},
		"with another key type": {rsa, needKey},
		"near its end":          {have(20*24*time.Hour, "a.test", "b.test"), needRenewal},
		"expired":               {have(-time.Hour, "a.test", "b.test"), needRenewal},
	} {
		if got := st.needs(&b, c.have, nil, now); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
