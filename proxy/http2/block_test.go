package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"edge/proxy/exchange"
)

func decodeAll(tb testing.TB, block []byte) exchange.Fields {
	tb.Helper()
	got, err := hpack.NewDecoder(4096, nil).DecodeFull(block)
	if err != nil {
		tb.Fatal(err)
	}
	var f exchange.Fields
	for _, x := range got {
		f.Add(x.Name, x.Value)
	}
	return f
}

// Whatever we encode, hpack's decoder reads, and so does ours.
func TestBlocksSurviveEncoding(t *testing.T) {
	var sent exchange.Fields
	for name := range knownNames {
		if knownNames[name].kind < hopByHop {
			sent.Add(name, "value of "+name)
		}
	}
	for _, n := range []int{0, 1, 14, 15, 126, 127, 128, 254, 255, 256, 1000, 16500} {
		sent.Add(fmt.Sprintf("x-%d", n), strings.Repeat("v", n))
	}
	sent.Add("x-"+strings.Repeat("n", 300), "long name")
	e := newEncoder()
	for _, f := range sent {
		if err := e.field(strings.ToUpper(f.Name), f.Value, headSection); err != nil {
			t.Fatal(f.Name, err)
		}
	}
	got := decodeAll(t, e.block)
	if fmt.Sprint(got) != fmt.Sprint(sent) {
		t.Errorf("got %v\nwant %v", got, sent)
	}
	size := 0
	for _, f := range sent {
		size += len(f.Name) + len(f.Value) + fieldOverhead
	}
	if e.size != size {
		t.Errorf("size %d, want %d", e.size, size)
	}
	d := newDecoder()
	d.begin(true)
	for b := e.block; len(b) > 0; {
		n := min(len(b), 5000)
		if err := d.write(b[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	if err := d.end(); err != nil || d.malformed != "" || fmt.Sprint(d.take()) != fmt.Sprint(sent) {
		t.Errorf("%v %s %v", err, d.malformed, d.fields)
	}
}

func TestSensitiveFieldsEnterNoTable(t *testing.T) {
	e := newEncoder()
	for _, name := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Accept"} {
		if err := e.field(name, "x", headSection); err != nil {
			t.Fatal(err)
		}
	}
	var sensitive []string
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) {
		if f.Sensitive {
			sensitive = append(sensitive, f.Name)
		}
	})
	if _, err := d.Write(e.block); err != nil || fmt.Sprint(sensitive) != "[authorization cookie proxy-authorization]" {
		t.Errorf("%v, %v", sensitive, err)
	}
}

func TestEncodingAllocatesNothing(t *testing.T) {
	call := benchCall()
	e := newEncoder()
	if n := testing.AllocsPerRun(100, func() {
		e.block, e.size = e.block[:0], 0
		if err := e.request(call); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The blocks of streams that are gone still change the table that the others
// refer to.
func TestTableStaysRightWhenNobodyWantsABlock(t *testing.T) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	d := newDecoder()
	write := func(wanted bool, f ...hpack.HeaderField) {
		b.Reset()
		for _, x := range f {
			_ = enc.WriteField(x)
		}
		d.begin(wanted)
		if err := errors.Join(d.write(b.Bytes()), d.end()); err != nil {
			t.Fatal(err)
		}
	}
	status, a := hpack.HeaderField{Name: ":status", Value: "299"}, hpack.HeaderField{Name: "a", Value: "1"}
	write(false, status, a)
	if len(d.fields) != 0 || len(d.pseudo) != 0 {
		t.Errorf("collected %v", d.fields)
	}
	write(true, status, hpack.HeaderField{Name: "Bad", Value: "1"}, a)
	write(true, status, a)
	if h, malformed := d.responseHead(); malformed != "" || h.status != 299 || fmt.Sprint(h.fields) != "[{a 1}]" {
		t.Errorf("got %+v %s", h, malformed)
	}
}

func TestRulesForNamesAndValues(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "x-y_z.1": true, "!#$%&'*+-.^_`|~": true, "": false, "A": false, "a b": false, "a:": false, "é": false, "a\x00": false, "a\x7f": false, "(": false,
	} {
		if validLowerName(s) != want {
			t.Errorf("name %q: %v", s, !want)
		}
	}
	for s, want := range map[string]bool{
		"": true, "a": true, "a\tb c": true, "ünï": true, " a": false, "a ": false, "\ta": false, "a\t": false, "a\rb": false, "a\nb": false, "a\x00": false, "a\x1fb": false, "a\x7f": false, " ": false,
	} {
		if validValue(s) != want {
			t.Errorf("value %q: %v", s, !want)
		}
	}
	for name := range knownNames {
		if len(name) > longestKnown {
			t.Errorf("%s is longer than longestKnown", name)
		}
		if lookUp(strings.ToUpper(name)) != knownNames[name] {
			t.Errorf("%s is not found in upper case", name)
		}
	}
}

// The indices are those of the table in RFC 7541.
func TestStaticTable(t *testing.T) {
	for name, known := range knownNames {
		if known.index == 0 {
			continue
		}
		f := decodeAll(t, []byte{0x0f, known.index - 15, 0})
		if f[0].Name != name {
			t.Errorf("%d is %s, not %s", known.index, f[0].Name, name)
		}
	}
}

func benchCall() *exchange.Call {
	return &exchange.Call{
		Method: "POST", Target: "/v1/chat/completions", Scheme: "https", Host: "models.test", Body: io.LimitReader(nil, 0), Length: 1000,
		Header: exchange.Fields{
			{Name: "Accept", Value: "application/json"},
			{Name: "Content-Type", Value: "application/json"},
			{Name: "User-Agent", Value: "OpenAI/Python 1.99.1"},
			{Name: "Accept-Encoding", Value: "gzip, deflate, br"},
			{Name: "Authorization", Value: "Bearer sk-0123456789abcdef0123456789abcdef"},
			{Name: "X-Stainless-Lang", Value: "python"},
			{Name: "X-Stainless-Package-Version", Value: "1.99.1"},
			{Name: "X-Stainless-OS", Value: "Linux"},
			{Name: "X-Stainless-Arch", Value: "x64"},
			{Name: "X-Stainless-Retry-Count", Value: "0"},
			{Name: "X-Request-Id", Value: "0123456789abcdef"},
			{Name: "X-Forwarded-For", Value: "192.0.2.1"},
		},
	}
}

// BenchmarkBlock is why the encoder is our own and has no dynamic table.
func BenchmarkBlock(b *testing.B) {
	call := benchCall()
	b.Run("edge", func(b *testing.B) {
		b.ReportAllocs()
		e := newEncoder()
		for b.Loop() {
			e.block, e.size = e.block[:0], 0
			if err := e.request(call); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(e.block)), "B/block")
	})
	for name, size := range map[string]uint32{"hpack": 4096, "hpack without table": 0} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var out bytes.Buffer
			enc := hpack.NewEncoder(&out)
			enc.SetMaxDynamicTableSizeLimit(size)
			i := 0
			for b.Loop() {
				i++
				out.Reset()
				_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: call.Method})
				_ = enc.WriteField(hpack.HeaderField{Name: ":scheme", Value: call.Scheme})
				_ = enc.WriteField(hpack.HeaderField{Name: ":path", Value: call.Target})
				_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: call.Host})
				for _, f := range call.Header {
					value := f.Value
					if f.Name == "X-Request-Id" {
						value = fmt.Sprintf("%016d", i)
					}
					_ = enc.WriteField(hpack.HeaderField{Name: strings.ToLower(f.Name), Value: value, Sensitive: f.Name == "Authorization"})
				}
			}
			b.ReportMetric(float64(out.Len()), "B/block")
		})
	}
}
