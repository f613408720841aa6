package testenv

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	ipmiSELRecord = 16
	// ipmiSELMost is how many events there is room for; then new ones are dropped
	// and the overflow is flagged, as most BMCs do.
	ipmiSELMost = 512
	// Types of records (32.1).
	ipmiSELSystemEvent = 0x02
	ipmiSELStamped     = 0xdf // up to here the BMC adds the time
)

// ipmiSEL is the system event log (31). It outlives resets of the BMC.
type ipmiSEL struct {
	mu       sync.Mutex
	records  [][ipmiSELRecord]byte // ascending IDs, not without gaps
	last     uint16                // ID given out
	added    uint32
	erased   uint32
	overflow bool
	reserved uint16        // the reservation that holds, 0 for none
	reserves uint16        // that were given out
	skew     time.Duration // of its clock
}

func (l *ipmiSEL) now() uint32 { return uint32(time.Now().Add(l.skew).Unix()) }

// cancel ends the reservation, as a reset does (31.4).
func (l *ipmiSEL) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reserved = 0
}

// add stores a record under the next ID; false when there is no room. The lock
// is held.
func (l *ipmiSEL) add(record [ipmiSELRecord]byte) (id uint16, ok bool) {
	if len(l.records) >= ipmiSELMost {
		l.overflow = true
		return 0, false
	}
	l.last++
	if l.last == 0 || l.last == 0xffff {
		l.last = 1 // both have a meaning of their own
	}
	binary.LittleEndian.PutUint16(record[0:2], l.last)
	if record[2] <= ipmiSELStamped {
		binary.LittleEndian.PutUint32(record[3:7], l.now())
	}
	l.records = append(l.records, record)
	l.added = l.now()
	return l.last, true
}

// event stores an event of a sensor of the BMC's own: type of sensor, its
// number, and which of the states that are specific to it (42.2) came about.
func (l *ipmiSEL) event(sensorType, number, offset byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add([ipmiSELRecord]byte{
		2: ipmiSELSystemEvent, 7: 0x20, 9: 0x04,
		10: sensorType, 11: number, 12: 0x6f, 13: offset, 14: 0xff, 15: 0xff,
	})
}

// find is where the record stands; 0 asks for the first and FFFFh for the last.
func (l *ipmiSEL) find(id uint16) int {
	switch {
	case len(l.records) == 0:
		return -1
	case id == 0:
		return 0
	case id == 0xffff:
		return len(l.records) - 1
	}
	for i, r := range l.records {
		if binary.LittleEndian.Uint16(r[0:2]) == id {
			return i
		}
	}
	return -1
}

// registerSEL adds the commands of the SEL device (31), which go-ipmi's server
// does not have, and Platform Event (29.3), by which others log to it.
func (b *IPMIBMC) registerSEL(r *handlers.Registry) {
	for command, sized := range map[types.Command]struct {
		size int // of the request, at least
		do   func(*ipmiSEL, []byte) ([]byte, types.CompletionCode)
	}{
		types.CommandGetSELInfo:           {0, (*ipmiSEL).info},
		types.CommandGetSELAllocInfo:      {0, (*ipmiSEL).allocation},
		types.CommandReserveSEL:           {0, (*ipmiSEL).reserve},
		types.CommandGetSELEntry:          {6, (*ipmiSEL).get},
		types.CommandAddSELEntry:          {ipmiSELRecord, (*ipmiSEL).addEntry},
		types.CommandDeleteSELEntry:       {4, (*ipmiSEL).remove},
		types.CommandClearSEL:             {6, (*ipmiSEL).clear},
		types.CommandGetSELTime:           {0, (*ipmiSEL).clock},
		types.CommandSetSELTime:           {4, (*ipmiSEL).setClock},
		types.CommandGetSELTimeUTCOffset:  {0, (*ipmiSEL).zone},
		types.CommandPlatformEventMessage: {7, (*ipmiSEL).platformEvent},
	} {
		r.RegisterFunc(command, func(_ context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
			if len(data) < sized.size {
				return nil, types.CodeRequestDataLengthInvalid, nil
			}
			b.sel.mu.Lock()
			defer b.sel.mu.Unlock()
			answer, code := sized.do(&b.sel, data)
			return answer, code, nil
		})
	}
}

func (l *ipmiSEL) info([]byte) ([]byte, types.CompletionCode) {
	const deletes, reserves, allocates, version = 0x08, 0x02, 0x01, 0x51
	answer := binary.LittleEndian.AppendUint16([]byte{version}, uint16(len(l.records)))
	answer = binary.LittleEndian.AppendUint16(answer, uint16(ipmiSELRecord*(ipmiSELMost-len(l.records))))
	answer = binary.LittleEndian.AppendUint32(answer, l.added)
	answer = binary.LittleEndian.AppendUint32(answer, l.erased)
	support := byte(deletes | reserves | allocates)
	if l.overflow {
		support |= 0x80
	}
	return append(answer, support), types.CodeOK
}

func (l *ipmiSEL) allocation([]byte) ([]byte, types.CompletionCode) {
	free := uint16(ipmiSELMost - len(l.records))
	var answer []byte
	for _, n := range []uint16{ipmiSELMost, ipmiSELRecord, free, free} {
		answer = binary.LittleEndian.AppendUint16(answer, n)
	}
	return append(answer, 1), types.CodeOK
}

func (l *ipmiSEL) reserve([]byte) ([]byte, types.CompletionCode) {
	if l.reserves++; l.reserves == 0 {
		l.reserves = 1
	}
	l.reserved = l.reserves
	return binary.LittleEndian.AppendUint16(nil, l.reserved), types.CodeOK
}

// holds says whether the request carries the reservation.
func (l *ipmiSEL) holds(data []byte) bool {
	return l.reserved != 0 && binary.LittleEndian.Uint16(data) == l.reserved
}

func (l *ipmiSEL) get(data []byte) ([]byte, types.CompletionCode) {
	offset, size := int(data[4]), int(data[5])
	if offset > 0 && !l.holds(data) {
		return nil, types.CodeReservationCanceled
	}
	i := l.find(binary.LittleEndian.Uint16(data[2:4]))
	if i < 0 {
		return nil, types.CodeRequestedDataNotPresent
	}
	if offset >= ipmiSELRecord {
		return nil, types.CodeParameterOutOfRange
	}
	next := uint16(0xffff)
	if i+1 < len(l.records) {
		next = binary.LittleEndian.Uint16(l.records[i+1][0:2])
	}
	part := l.records[i][offset:min(offset+size, ipmiSELRecord)]
	return append(binary.LittleEndian.AppendUint16(nil, next), part...), types.CodeOK
}

func (l *ipmiSEL) addEntry(data []byte) ([]byte, types.CompletionCode) {
	id, ok := l.add([ipmiSELRecord]byte(data[:ipmiSELRecord]))
	if !ok {
		return nil, types.CodeOutOfSpace
	}
	return binary.LittleEndian.AppendUint16(nil, id), types.CodeOK
}

// platformEvent is an event as a sensor sends it, without a record around it.
func (l *ipmiSEL) platformEvent(data []byte) ([]byte, types.CompletionCode) {
	record := [ipmiSELRecord]byte{2: ipmiSELSystemEvent, 7: 0x41} // from software on a console
	copy(record[9:], data[:7])
	if _, ok := l.add(record); !ok {
		return nil, types.CodeOutOfSpace
	}
	return nil, types.CodeOK
}

func (l *ipmiSEL) remove(data []byte) ([]byte, types.CompletionCode) {
	if !l.holds(data) {
		return nil, types.CodeReservationCanceled
	}
	i := l.find(binary.LittleEndian.Uint16(data[2:4]))
	if i < 0 {
		return nil, types.CodeRequestedDataNotPresent
	}
	id := l.records[i][0:2:2]
	answer := append([]byte(nil), id...)
	l.records = append(l.records[:i], l.records[i+1:]...)
	l.erased, l.reserved = l.now(), 0
	return answer, types.CodeOK
}

func (l *ipmiSEL) clear(data []byte) ([]byte, types.CompletionCode) {
	const start, status, completed = 0xaa, 0x00, 1
	switch {
	case !l.holds(data):
		return nil, types.CodeReservationCanceled
	case string(data[2:5]) != "CLR", data[5] != start && data[5] != status:
		return nil, types.CodeRequestDataFieldInvalid
	case data[5] == start:
		// The reservation lasts, for asking how far it is (31.9).
		l.records, l.overflow, l.erased = nil, false, l.now()
	}
	return []byte{completed}, types.CodeOK
}

func (l *ipmiSEL) clock([]byte) ([]byte, types.CompletionCode) {
	return binary.LittleEndian.AppendUint32(nil, l.now()), types.CodeOK
}

func (l *ipmiSEL) setClock(data []byte) ([]byte, types.CompletionCode) {
	l.skew = time.Until(time.Unix(int64(binary.LittleEndian.Uint32(data)), 0))
	return nil, types.CodeOK
}

// zone is the clock's offset from UTC in minutes: none.
func (l *ipmiSEL) zone([]byte) ([]byte, types.CompletionCode) { return []byte{0, 0}, types.CodeOK }
