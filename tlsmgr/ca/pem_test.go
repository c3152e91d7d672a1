package ca

import (
	"crypto/x509"
	"strings"
	"testing"
)

func TestParseReadsWhatPEMWrites(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	b, err := Parse(a.PEM())
	if err != nil {
		t.Fatal(err)
	}
	pair := issue(t, b, serverKey(t), day, begin, "app.internal")
	if err := verify(t, a, pair, "app.internal", begin, x509.ExtKeyUsageServerAuth); err != nil {
		t.Errorf("what was parsed issues what the root does not vouch for: %v", err)
	}
	if b.Root() != a.Root() || b.String() != a.String() {
		t.Error("the root has changed")
	}
}

func TestParseRefusesPartsThatDoNotBelongTogether(t *testing.T) {
	t.Parallel()
	a, other := create(t, begin), create(t, begin)
	root, rootKey, chain, key := a.PEM()
	otherRoot, otherRootKey, otherChain, otherKey := other.PEM()
	server := serverKey(t)
	leaf, err := a.Issue([]string{"app.internal"}, server, day, begin)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, _ = strings.Cut(leaf, "-----BEGIN CERTIFICATE-----\n"+strings.SplitN(chain, "\n", 3)[1])
	for _, c := range []struct {
		what                      string
		root, rootKey, chain, key string
		want                      string
	}{
		{"root of another", otherRoot, rootKey, chain, key, "the root's key is not that of its certificate"},
		{"root and key of another", otherRoot, otherRootKey, chain, key, "the intermediate is not the root's"},
		{"intermediate of another", root, rootKey, otherChain, key, "the intermediate's key is not that of its certificate"},
		{"intermediate and key of another", root, rootKey, otherChain, otherKey, "the intermediate is not the root's"},
		{"parts the wrong way round", chain, key, root, rootKey, "the root has not signed itself"},
		{"root twice", root, rootKey, root, rootKey, "the intermediate is the root itself"},
		{"leaf as intermediate", root, rootKey, leaf, encodeKey(server), "the intermediate may not sign certificates"},
		{"nothing", "", "", "", "", "certificate of the root: no PEM"},
		{"no key", root, "", chain, key, "key of the root: no PEM"},
		{"a key for a certificate", rootKey, rootKey, chain, key, `PEM of type "PRIVATE KEY", want "CERTIFICATE"`},
		{"two certificates", root, rootKey, chain + root, key, "certificate of the intermediate: more than one PEM block"},
		{"torn key", root, rootKey, chain, strings.Replace(key, "M", "", 1), "key of the intermediate"},
		{"too long", root, rootKey, chain + strings.Repeat("\n", 70_000), key, "at most 65536 are read"},
	} {
		_, err := Parse(c.root, c.rootKey, c.chain, c.key)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), strings.SplitN(rootKey, "\n", 3)[1][:20]) {
			t.Errorf("%s: the error quotes a key: %v", c.what, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	a := create(f, begin)
	root, rootKey, chain, key := a.PEM()
	f.Add(root, rootKey, chain, key)
	f.Add(chain, key, root, rootKey)
	f.Fuzz(func(t *testing.T, root, rootKey, chain, key string) {
		got, err := Parse(root, rootKey, chain, key)
		if err != nil {
			return
		}
		if _, err := Parse(got.PEM()); err != nil {
			t.Errorf("what was accepted is not accepted again: %v", err)
		}
	})
}
