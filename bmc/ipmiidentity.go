package bmc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiDevice is what Get Device ID tells (IPMI 2.0, 20.1).
type ipmiDevice struct {
	vendor, model, firmware string
	quirks                  quirks
}

// decode reads the answer without its completion code.
func (d *ipmiDevice) decode(id []byte) error {
	if len(id) < 11 {
		return badResponse
	}
	vendor := uint32(id[6]) | uint32(id[7])<<8 | uint32(id[8]&0x0f)<<16
	d.vendor = types.OEM(vendor).String()
	if d.vendor == "Unknown" {
		d.vendor = fmt.Sprintf("IANA %d", vendor)
	}
	d.model = fmt.Sprintf("product %d", uint16(id[9])|uint16(id[10])<<8)
	d.firmware = fmt.Sprintf("%d.%02x", id[2]&0x7f, id[3])
	return nil
}

// device asks once per login of the driver; facts of another board or firmware
// are forgotten by it.
func (d *ipmiDriver) device(ctx context.Context) (*ipmiDevice, error) {
	if d.about != nil {
		return d.about, nil
	}
	about := &ipmiDevice{}
	err := d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		// Not go-ipmi's own call: it insists on the four bytes at the end that a BMC may
		// leave out.
		command := types.CommandGetDeviceID
		id, err := lib.RawCommand(ctx, command.NetFn, command.ID, nil, command.Name)
		if err != nil {
			return err
		}
		return about.decode(id.Response)
	})
	if err != nil {
		return nil, err
	}
	about.quirks = quirksOf(about.vendor, about.model, about.firmware)
	d.facts.of(about.vendor, about.model, about.firmware)
	d.about = about
	return about, nil
}

func (d *ipmiDriver) identity(ctx context.Context) (Identity, error) {
	device, err := d.device(ctx)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{BMC: BMCIdentity{Vendor: device.vendor, Model: device.model, Firmware: device.firmware}}
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		guid, err := lib.GetSystemGUID(ctx)
		if err == nil {
			id.UUID = guidText(guid.GUID)
		}
		return unlessAnswered(err)
	})
	if err != nil {
		return id, err
	}
	fru, err := d.fru(ctx)
	if err != nil {
		return id, err
	}
	id.Manufacturer, id.Model, id.Serial, id.Part, id.Board = fru.manufacturer, fru.model, fru.serial, fru.part, fru.board
	return id, nil
}

// unlessAnswered forgives what the BMC refused: it does not have everything.
func unlessAnswered(err error) error {
	var answered *types.ResponseError
	if errors.As(err, &answered) && reasonOf(err) != ErrAuth {
		return nil
	}
	return err
}

// guidText reads a System GUID. Most BMCs send its bytes as SMBIOS stores them, the
// specification wants them reversed as a whole (20.8), some write them as RFC 9562
// does. The version digit tells which, as far as anything does.
func guidText(guid [16]byte) string {
	if guid == ([16]byte{}) || strings.Trim(hex.EncodeToString(guid[:]), "f") == "" {
		return ""
	}
	for _, mode := range []types.GUIDMode{types.GUIDModeSMBIOS, types.GUIDModeIPMI, types.GUIDModeRFC4122} {
		id, err := types.ParseGUID(guid[:], mode)
		if err == nil && id.Version() >= 1 && id.Version() <= 5 && id[8]&0xc0 == 0x80 {
			return id.String()
		}
	}
	id, err := types.ParseGUID(guid[:], types.GUIDModeSMBIOS)
	if err != nil {
		return ""
	}
	return id.String()
}

// ipmiFRU is the part of the FRU of the BMC's own board that names the machine.
type ipmiFRU struct{ manufacturer, model, part, serial, board string }

const (
	// fruChunk is what every BMC reads at once; some fail above it.
	fruChunk = 16
	fruArea  = 255 * 8 // the longest area (FRU 1.3, 10 to 12)
)

// fru reads the board and the product area of FRU 0. A BMC without them, or with
// broken ones, tells nothing of it.
func (d *ipmiDriver) fru(ctx context.Context) (fru ipmiFRU, err error) {
	header, err := d.readFRU(ctx, 0, 8)
	if err != nil || !sumsToZero(header) {
		return fru, err
	}
	area := func(offset byte) ([]byte, error) {
		if offset == 0 {
			return nil, nil
		}
		start := int(offset) * 8
		head, err := d.readFRU(ctx, start, 8)
		if err != nil || len(head) < 2 {
			return nil, err
		}
		rest, err := d.readFRU(ctx, start+8, min(int(head[1])*8, fruArea)-8)
		return append(head, rest...), err
	}
	board, err := area(header[3])
	if err != nil {
		return fru, err
	}
	product, err := area(header[4])
	if err != nil {
		return fru, err
	}
	return fruNames(board, product), nil
}

// readFRU reads so many bytes; fewer where the BMC has no more, or refuses.
func (d *ipmiDriver) readFRU(ctx context.Context, offset, length int) (data []byte, err error) {
	for len(data) < length {
		var chunk []byte
		err := d.with(ctx, ipmiRetries, func(lib *client.Client) error {
			answer, err := lib.ReadFRUData(ctx, 0, uint16(offset+len(data)), uint8(min(fruChunk, length-len(data))))
			if err == nil {
				chunk = answer.Data[:min(len(answer.Data), int(answer.CountReturned))]
			}
			return unlessAnswered(err)
		})
		if err != nil {
			return nil, err
		}
		if len(chunk) == 0 {
			break
		}
		data = append(data, chunk[:min(len(chunk), length-len(data))]...)
	}
	return data, nil
}

// fruNames takes the machine's names from a board and a product info area (FRU
// 1.3, 11 and 12). Where the product has none, the board stands for it.
func fruNames(board, product []byte) (fru ipmiFRU) {
	b := fruFields(board, 6)   // after the date of manufacture
	p := fruFields(product, 3) // after the language
	first := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	fru.board = b[2]
	fru.manufacturer, fru.model = first(p[0], b[0]), first(p[1], b[1])
	fru.part, fru.serial = first(p[2], b[3]), first(p[4], b[2])
	return fru
}

// fruFields are the first five fields of an area that is whole.
func fruFields(area []byte, offset int) (fields [5]string) {
	if len(area) < 8 || !sumsToZero(area) {
		return fields
	}
	for i := range fields {
		if offset >= len(area) || area[offset] == 0xc1 { // the end of the fields
			return fields
		}
		kind := types.TypeLength(area[offset])
		end := offset + 1 + int(kind.Length())
		if end > len(area) {
			return fields
		}
		if chars, err := kind.Chars(area[offset+1 : end]); err == nil && kind.TypeCode() != 0 {
			fields[i] = plainText(strings.ToValidUTF8(string(chars), ""))
		}
		offset = end
	}
	return fields
}

func sumsToZero(data []byte) bool {
	var sum byte
	for _, b := range data {
		sum += b
	}
	return sum == 0 && len(data) >= 8
}
