package upstream

import (
	"io"

	"edge/proxy/exchange"
)

// Response is a reply whose head has arrived. It is an exchange.Source; the
// endpoint's slot is held until Close.
type Response struct {
	Status   int
	Header   exchange.Fields // order of equal names kept
	Length   int64           // -1 unknown
	Endpoint string          // URL of the endpoint that answered
	Attempts int             // endpoints tried, 1 for the first
}

// Read returns what arrived.
func (r *Response) Read(p []byte) (int, error) { return 0, io.EOF }

// Trailer is valid after io.EOF.
func (r *Response) Trailer() exchange.Fields { return nil }

// Close ends.
func (r *Response) Close() error { return nil }

// Tunnel is for 101.
func (r *Response) Tunnel() io.ReadWriteCloser { return nil }
