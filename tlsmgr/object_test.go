package tlsmgr

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"edge/config"
)

func TestStoredCertificateComesBackAsItWas(t *testing.T) {
	ca := newTestCA(t)
	chain, key := ca.issue(t, config.P256, time.Now(), time.Now().Add(time.Hour), "a.test", "*.b.test")
	o := &object{
		Format: objectFormat, ID: "b", Names: []string{"*.b.test", "a.test"}, Issuer: "i", Directory: "https://ca.test/dir", Profile: "tlsserver",
		KeyType: config.P256, Chain: chain, PrivateKey: key, OrderURL: "https://ca.test/order/1", ObtainedAt: time.Now().UTC().Round(0), Owner: "me",
	}
	data, err := encodeObject(o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeCertificate("b", data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c.object, o) {
		t.Errorf("got %+v\nwant %+v", c.object, o)
	}
}

func TestStoredCertificateIsRefused(t *testing.T) {
	ca := newTestCA(t)
	good := ca.certificate(t, "b", config.P256, time.Now(), time.Now().Add(time.Hour), "a.test").object
	_, other := ca.issue(t, config.P256, time.Now(), time.Now().Add(time.Hour), "a.test")
	for want, edit := range map[string]func(*object){
		"written by a newer edge (its format is 2, this edge knows 1": func(o *object) { o.Format = 2 },
		"has no format":              func(o *object) { o.Format = 0 },
		`holds certificate "a"`:      func(o *object) { o.ID = "a" },
		"private key does not match": func(o *object) { o.PrivateKey = other },
		"failed to find":             func(o *object) { o.Chain = "" },
	} {
		o := *good
		edit(&o)
		data, err := encodeObject(&o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeCertificate("b", data)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if errors.Is(err, errNewer) != strings.Contains(want, "newer") {
			t.Errorf("%v: errNewer is %v", err, errors.Is(err, errNewer))
		}
	}
	if _, err := decodeCertificate("b", []byte("{")); err == nil {
		t.Error("half an object was accepted")
	}
}

// A key names one certificate, and no id reaches out of its directory.
func FuzzCertificateKey(f *testing.F) {
	for _, id := range []string{"example.com", "example.com-2", "_.example.com", "a/b", "../x", "ä b", "%2f", ""} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		key := certificateKey(id)
		if got, ok := certificateID(key); !ok || got != id {
			t.Errorf("%q has key %q, which is the key of %q, %v", id, key, got, ok)
		}
		if strings.Count(key, "/") != strings.Count(certificateDir, "/")+1 {
			t.Errorf("%q has key %q", id, key)
		}
	})
}

func TestForeignKeysAreNoCertificates(t *testing.T) {
	for _, key := range []string{"edge/v1/accounts/a.json", certificateDir + "/a", certificateDir + "/a/b.json", certificateDir + "/%zz.json", certificateDir + "/%61.json"} {
		if id, ok := certificateID(key); ok {
			t.Errorf("%q is taken for certificate %q", key, id)
		}
	}
}

func TestNeedsSaysWhy(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	have := func(left time.Duration, names ...string) *stored {
		c := ca.certificate(t, "b", config.P256, now.Add(left-90*24*time.Hour), now.Add(left), names...)
		c.object.Directory = "https://ca.test/dir"
		return &stored{version: "1", cert: c}
	}
	const long = 80 * 24 * time.Hour
	b := Bundle{ID: "b", Names: []string{"a.test", "b.test"}, KeyType: config.P256}
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
		if got := b.needs(c.have, "https://ca.test/dir", now); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestStoredAccountIsRefused(t *testing.T) {
	homeless, err := encodeAccount(&config.Issuer{}, &acme.Account{PrivateKey: newTestCA(t).key})
	if err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string]string{
		"written by a newer edge": `{"format":2}`,
		"not JSON":                `{`,
		"private key is not PEM (restore the object, or delete it to register a new account)": `{"format":1}`,
		"has no account URL (restore the object":                                              string(homeless),
	} {
		if _, err := decodeAccount([]byte(data)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", data, err, want)
		}
	}
}
