package acmelab

import "testing"

// New is Start for a test.
func New(tb testing.TB, o Options) *Lab {
	tb.Helper()
	l, err := Start(o)
	return started(tb, l, err)
}

// NewDNS is StartDNS for a test.
func NewDNS(tb testing.TB, o DNSOptions) *DNS {
	tb.Helper()
	d, err := StartDNS(o)
	return started(tb, d, err)
}

// NewCA is StartCA for a test. The CA must come after the DNS server that it
// asks, so that it ends before it.
func NewCA(tb testing.TB, o CAOptions) *CA {
	tb.Helper()
	c, err := StartCA(o)
	return started(tb, c, err)
}

// NewS3 is StartS3 for a test.
func NewS3(tb testing.TB, buckets ...string) *S3 {
	tb.Helper()
	s, err := StartS3(S3Options{Buckets: buckets})
	return started(tb, s, err)
}

// started fails the test on err and closes part at its end.
func started[T interface{ Close() error }](tb testing.TB, part T, err error) T {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := part.Close(); err != nil {
			tb.Error(err)
		}
	})
	return part
}

// NewRoute53 is StartRoute53 for a test.
func NewRoute53(tb testing.TB, o Route53Options) *Route53 {
	tb.Helper()
	f, err := StartRoute53(o)
	return started(tb, f, err)
}

// NewCloudflare is StartCloudflare for a test.
func NewCloudflare(tb testing.TB, o CloudflareOptions) *Cloudflare {
	tb.Helper()
	f, err := StartCloudflare(o)
	return started(tb, f, err)
}

// NewGoogle is StartGoogle for a test.
func NewGoogle(tb testing.TB, o GoogleOptions) *Google {
	tb.Helper()
	f, err := StartGoogle(o)
	return started(tb, f, err)
}

// NewAzure is StartAzure for a test.
func NewAzure(tb testing.TB, o AzureOptions) *Azure {
	tb.Helper()
	f, err := StartAzure(o)
	return started(tb, f, err)
}

// NewTap is Lab.Tap for a test.
func NewTap(tb testing.TB, l *Lab, o TapOptions) *Tap {
	tb.Helper()
	t, err := l.Tap(o)
	return started(tb, t, err)
}
