package exchange_test

import (
	"fmt"
	"net/textproto"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"edge/proxy/exchange"
)

func TestFieldNamesFoldLettersOnly(t *testing.T) {
	f := exchange.Fields{{Name: "X-Test", Value: "1"}, {Name: "a@b", Value: "2"}, {Name: "É", Value: "3"}}
	for name, want := range map[string]string{
		"x-test": "1", "X-TEST": "1", "X-Test": "1", "x_test": "", "x-tes": "", "": "",
		"A@B": "2", "a`b": "", "X\rTest": "", "é": "",
	} {
		if got := f.Get(name); got != want {
			t.Errorf("Get(%q) is %q, want %q", name, got, want)
		}
		if got := f.Has(name); got != (want != "") {
			t.Errorf("Has(%q) is %v", name, got)
		}
	}
}

func TestSetKeepsThePlaceOfTheFirst(t *testing.T) {
	var f exchange.Fields
	f.Set("B", "0")
	f.Add("a", "1")
	f.Add("b", "2")
	f.Add("c", "3")
	f.Add("B", "4")
	f.Set("b", "5")
	if got, want := fmt.Sprint(f), "[{B 5} {a 1} {c 3}]"; got != want {
		t.Errorf("fields are %s, want %s", got, want)
	}
}

// TestFieldsAgreeWithMIMEHeader drives both with the same calls.
func TestFieldsAgreeWithMIMEHeader(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f exchange.Fields
		h := textproto.MIMEHeader{}
		names := rapid.SampledFrom([]string{"a", "A", "x-b", "X-B", "x-B", "c"})
		for i := range rapid.IntRange(0, 30).Draw(t, "calls") {
			name, value := names.Draw(t, "name"), fmt.Sprint(i)
			switch rapid.IntRange(0, 2).Draw(t, "call") {
			case 0:
				f.Add(name, value)
				h.Add(name, value)
			case 1:
				f.Set(name, value)
				h.Set(name, value)
			case 2:
				f.Del(name)
				h.Del(name)
			}
			for _, name := range []string{"A", "x-b", "C"} {
				if got, want := slices.Collect(f.Values(name)), h.Values(name); !slices.Equal(got, want) {
					t.Fatalf("Values(%q) are %q, want %q", name, got, want)
				}
				if got, want := f.Get(name), h.Get(name); got != want {
					t.Fatalf("Get(%q) is %q, want %q", name, got, want)
				}
			}
		}
	})
}

func TestReadingFieldsDoesNotAllocate(t *testing.T) {
	f := exchange.Fields{
		{Name: "Accept", Value: "*/*"},
		{Name: "Authorization", Value: "Bearer x"},
		{Name: "Cookie", Value: "a"},
		{Name: "Cookie", Value: "b"},
	}
	total := 0
	if n := testing.AllocsPerRun(100, func() {
		total += len(f.Get("authorization")) + len(f.Get("x-none"))
		if f.Has("cookie") {
			total++
		}
		for v := range f.Values("cookie") {
			total += len(v)
		}
		f.Set("authorization", "Bearer y")
		f.Del("x-none")
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkGet(b *testing.B) {
	var f exchange.Fields
	for i := range 12 {
		f.Add(fmt.Sprintf("X-Stainless-%d", i), "x")
	}
	f.Add("Authorization", "Bearer x")
	b.ReportAllocs()
	for b.Loop() {
		if f.Get("authorization") == "" || f.Get("x-request-id") != "" {
			b.Fatal("wrong value")
		}
	}
}
