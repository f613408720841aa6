package bmc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/storage"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Record IDs that are none (IPMI 2.0, 31.5).
const (
	selFirst = 0x0000
	selLast  = 0xffff
)

// events walks the SEL by its own links: ids are handles without an order.
func (d *ipmiDriver) events(ctx context.Context, after cursorAt) (found Events, err error) {
	next := uint16(selFirst)
	if after.id != "" {
		id, err := strconv.ParseUint(after.id, 0, 16)
		if err != nil || id == selFirst || id == selLast {
			return found, fmt.Errorf("%w: read event log: cursor %q is none over IPMI", ErrUnsupported, after)
		}
		record, following, err := d.selEntry(ctx, uint16(id))
		switch {
		case err != nil:
			return found, err
		case record == nil || after.sum != sumOf(string(record)):
			found.Lost = true
		case following == selLast:
			return found, nil
		default:
			next = following
		}
	}
	for {
		record, following, err := d.selEntry(ctx, next)
		if err != nil || record == nil { // cleared meanwhile, or empty
			return found, err
		}
		event, id := selEvent(record)
		found.Events = append(found.Events, event)
		found.Cursor = cursorAt{id, sumOf(string(record))}.String()
		if following == selLast || following == next {
			return found, nil
		}
		if len(found.Events) == eventsMost {
			found.More = true
			return found, nil
		}
		next = following
	}
}

// selEntry is one record, nil where there is none. go-ipmi's own call asks for
// the log's state before each.
func (d *ipmiDriver) selEntry(ctx context.Context, id uint16) (record []byte, next uint16, err error) {
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		var answer storage.GetSELEntryResponse
		err := lib.Exchange(ctx, &storage.GetSELEntryRequest{RecordID: id, ReadBytes: 0xff}, &answer)
		var refused *types.ResponseError
		if errors.As(err, &refused) {
			switch refused.CompletionCode() {
			case types.CodeRequestedDataNotPresent, types.CodeParameterOutOfRange, types.CodeRequestDataFieldInvalid:
				return nil // an empty log says so too
			}
		}
		if err == nil {
			record, next = answer.Data, answer.NextRecordID
		}
		return err
	})
	return record, next, err
}

// selEvent reads a record (IPMI 2.0, 32), whatever the BMC put there.
func selEvent(record []byte) (event Event, id string) {
	if len(record) < 16 {
		return Event{Text: fmt.Sprintf("unreadable record % x", record)}, "0x0"
	}
	id = fmt.Sprintf("%#04x", uint16(record[0])|uint16(record[1])<<8)
	event = Event{ID: id, Text: fmt.Sprintf("record of type %#02x: % x", record[2], record[3:16])}
	// Up to 0x20000000 it is seconds since the BMC started (37.1); from type e0h on
	// there is no time.
	if stamp := binary.LittleEndian.Uint32(record[3:7]); record[2] < 0xe0 && stamp > 0x20000000 && stamp != 0xffffffff {
		event.At = time.Unix(int64(stamp), 0).UTC()
	}
	_ = protect(func() error { // the library's tables; without them the bytes tell
		sel, err := types.ParseSEL(record[:16])
		if err != nil || sel.Standard == nil {
			return err
		}
		s := sel.Standard
		text := fmt.Sprintf("%s #%#02x: %s", s.SensorType, uint8(s.SensorNumber), s.EventString())
		if s.EventDir == types.EventDirDeassertion {
			text += ", no more"
		}
		event.Text, event.Severity = plainText(text), severity(string(s.EventSeverity()))
		return nil
	})
	return event, id
}
