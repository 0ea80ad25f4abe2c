package kvstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Entry is one key as it is stored.
type Entry struct {
	Key string
	// Version is that of the write that stored it.
	Version uint64
	// TTL is what is left until the key expires, in whole seconds rounded up. 0: it does not expire.
	TTL time.Duration
	// Text is the JSON text, byte for byte as it was stored. Empty for raw bytes and where only keys were asked for; JSON text never
	// is.
	Text string
	// Raw are the bytes that [Client.PutRaw] stored; not nil even if there are none. Nil for JSON and where only keys were asked for.
	Raw []byte
}

// JSON decodes the stored JSON into what target points to, as json.Unmarshal does.
func (e *Entry) JSON(target any) error {
	if e.Text == "" {
		return fmt.Errorf("kvstore: %q holds no JSON text: it was stored as raw bytes, or only keys were asked for", e.Key)
	}
	return json.Unmarshal([]byte(e.Text), target)
}

// stored is what GetResponse, Item and ScanResponse have in common.
type stored interface {
	GetKey() string
	GetVersion() uint64
	GetTtl() uint32
	GetValue() string
	GetRaw() []byte
}

func entryOf(message stored) *Entry {
	return &Entry{
		Key: message.GetKey(), Version: message.GetVersion(), TTL: time.Duration(message.GetTtl()) * time.Second,
		// Bytes that were received are never nil, even when there are none.
		Text: message.GetValue(), Raw: message.GetRaw(),
	}
}

func entriesOf(items []*pb.Item) []*Entry {
	entries := make([]*Entry, len(items))
	for i, item := range items {
		entries[i] = entryOf(item)
	}
	return entries
}

// encode gives the JSON text of value. Unlike json.Marshal it leaves <, > and & as they are: this is no HTML.
func encode(value any) (string, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return "", invalid(reasonInvalidJSON, "the value cannot be written as JSON: %v", err)
	}
	return string(bytes.TrimSuffix(text.Bytes(), []byte("\n"))), nil
}

// checkText refuses what protobuf cannot carry, before grpc fails on it in a way that looks like a broken connection.
func checkText(reason, what string, texts ...string) error {
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return invalid(reason, "%s is not UTF-8: %.64q", what, text)
		}
	}
	return nil
}
