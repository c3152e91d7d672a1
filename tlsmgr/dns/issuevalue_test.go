package dns

import (
	"slices"
	"strings"
	"testing"
)

func TestIssueValueIsReadAsRFC8659Writes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, issuer string
		parameters   []parameter
	}{
		{"", "", nil},
		{";", "", nil},
		{"ca.example", "ca.example", nil},
		{" \tca.example \t", "ca.example", nil},
		{"ca.example;", "ca.example", nil},
		{"ca-1.example; account=230123", "ca-1.example", []parameter{{"account", "230123"}}},
		{"ca.example;AccountURI=https://ca.example/acct/1;policy = wildcard", "ca.example", []parameter{{"accounturi", "https://ca.example/acct/1"}, {"policy", "wildcard"}}},
		{"ca.example; accounturi=a?b=c", "ca.example", []parameter{{"accounturi", "a?b=c"}}},
		{"; a=", "", []parameter{{"a", ""}}},
	} {
		v, err := parseIssueValue(c.text)
		if err != nil || v.issuer != c.issuer || !slices.Equal(v.parameters, c.parameters) {
			t.Errorf("%q: %+v, %v", c.text, v, err)
		}
	}
}

func TestIssueValueThatNoCAReadsIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"%%%%%":                     `"%%%%%" is no domain name of a CA`,
		"ca.example letsencrypt":    "is no domain name of a CA",
		"-ca.example":               "is no domain name of a CA",
		"ca..example":               "is no domain name of a CA",
		"ca.example; a=1;":          "a semicolon at the end",
		"ca.example; a=1;;b=2":      "an empty parameter",
		"ca.example; account":       `parameter "account" is not tag=value`,
		"ca.example; =1":            `parameter "=1" is not tag=value`,
		"ca.example; a=one two":     "the value of a has a space",
		"ca.example; a=\u00fcmlaut": "not ASCII",
	} {
		if _, err := parseIssueValue(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParameterGivenTwiceIsAnError(t *testing.T) {
	t.Parallel()
	v, err := parseIssueValue("ca.example; accounturi=a; accountURI=b; x=1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.get("accounturi"); err == nil {
		t.Error("accounturi twice is accepted")
	}
	if value, ok, err := v.get("x"); value != "1" || !ok || err != nil {
		t.Errorf("x: %q, %v, %v", value, ok, err)
	}
	if _, ok, err := v.get("y"); ok || err != nil {
		t.Errorf("y: %v, %v", ok, err)
	}
}

func FuzzIssueValue(f *testing.F) {
	for _, s := range []string{"", ";", "ca.example; a=b; c=d", "ca.example;;", "a=b", "\t;\t=\t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseIssueValue(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		var again strings.Builder
		again.WriteString(v.issuer + "; ")
		for _, p := range v.parameters {
			again.WriteString(p.tag + "=" + p.value + ";")
		}
		w, err := parseIssueValue(strings.TrimSuffix(again.String(), ";"))
		if err != nil || w.issuer != v.issuer || !slices.Equal(w.parameters, v.parameters) {
			t.Errorf("%q is read as %+v, and that written out as %+v, %v", text, v, w, err)
		}
	})
}
