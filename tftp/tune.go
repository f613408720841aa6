package tftp

import (
	"io"
	"reflect"
)

// The library (pin/tftp 3.1.0) reads its block size limit from the interface of
// a *net.UDPConn; on any other PacketConn, and a filter is one, it grants 512
// bytes: three times the packets and the CPU. Its number of retries is one for
// the whole server, while before the first ACK, when the source may be forged,
// there should be none. Both are fields of its transfer, which it does not
// export; the module is pinned, and TestTheLibraryStillHasItsFields fails when
// they move, in which case transfers go on with 512 bytes.
type tuning struct{ blockSize, retries *int }

func tune(transfer io.ReaderFrom) tuning {
	v := reflect.ValueOf(transfer)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return tuning{}
	}
	field := func(name string) *int {
		f := v.Elem().FieldByName(name)
		if !f.IsValid() || f.Kind() != reflect.Int {
			return nil
		}
		return (*int)(f.Addr().UnsafePointer())
	}
	return tuning{blockSize: field("maxBlockLen"), retries: field("retries")}
}

func set(field *int, value int) {
	if field != nil {
		*field = value
	}
}
