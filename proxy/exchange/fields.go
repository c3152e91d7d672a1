package exchange

import (
	"iter"
	"slices"
)

// Field is one field line of a header or trailer section.
type Field struct{ Name, Value string }

// Fields is a header or trailer section: field lines in order, duplicates kept,
// names as they came. Names are compared without regard to the case of ASCII
// letters (RFC 9110 5.1). The zero value is empty and ready for use.
//
//nolint:recvcheck // reading works on values, such as the result of Source.Trailer; only growing needs the address
type Fields []Field

// Get returns the value of the first field of that name, or "".
func (f Fields) Get(name string) string {
	for i := range f {
		if equalFold(f[i].Name, name) {
			return f[i].Value
		}
	}
	return ""
}

// Has reports whether there is a field of that name.
func (f Fields) Has(name string) bool {
	for i := range f {
		if equalFold(f[i].Name, name) {
			return true
		}
	}
	return false
}

// Values yields the value of every field of that name, in order.
func (f Fields) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range f {
			if equalFold(f[i].Name, name) && !yield(f[i].Value) {
				return
			}
		}
	}
}

// Set gives the first field of that name the value and removes the others, or
// adds the field.
func (f *Fields) Set(name, value string) {
	for i := range *f {
		if equalFold((*f)[i].Name, name) {
			(*f)[i].Value = value
			rest := (*f)[i+1:]
			rest.Del(name)
			*f = (*f)[:i+1+len(rest)]
			return
		}
	}
	f.Add(name, value)
}

// Add appends a field.
func (f *Fields) Add(name, value string) { *f = append(*f, Field{name, value}) }

// Del removes every field of that name.
func (f *Fields) Del(name string) {
	*f = slices.DeleteFunc(*f, func(x Field) bool { return equalFold(x.Name, name) })
}

// equalFold compares field names. Only letters fold: '@' and '`' differ by the
// same bit and are different names.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if lower := x | 0x20; lower != y|0x20 || lower < 'a' || lower > 'z' {
			return false
		}
	}
	return true
}
