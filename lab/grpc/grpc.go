// Package grpclab holds a second opinion on gRPC. The official interoperability
// client of grpc-go calls the official interoperability server through the real
// edge, which speaks HTTP/2 over TLS in front and h2c behind; each case also
// runs without edge, so that a failure has one author:
//
//	cd lab/grpc && go test -tags grpcnotrace ./...
//
// Beyond the official cases it asks for what only a proxy can get wrong: many
// streams at once that stay byte for byte what they were, a client whose
// deadline or departure the server learns of, and a server that restarts between
// two calls.
//
// It is a module of its own, so that grpc and what it needs stay out of what the
// product is built with, and it imports nothing of edge: it builds and runs it.
package grpclab
