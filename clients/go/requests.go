package kvstore

import (
	"crypto/rand"
	"encoding/hex"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// The requests of single operations, the same for calls and sessions.

func putJSON(key string, value any, given []Option) (*pb.PutRequest, error) {
	text, err := encode(value)
	if err != nil {
		return nil, err
	}
	return putText(key, text, given)
}

func putText(key, text string, given []Option) (*pb.PutRequest, error) {
	if err := checkText(reasonInvalidJSON, "the value", text); err != nil {
		return nil, err
	}
	request, err := put(key, given)
	if err != nil {
		return nil, err
	}
	request.Content = &pb.PutRequest_Value{Value: text}
	return request, nil
}

func putRaw(key string, raw []byte, given []Option) (*pb.PutRequest, error) {
	request, err := put(key, given)
	if err != nil {
		return nil, err
	}
	request.Content = &pb.PutRequest_Raw{Raw: raw}
	return request, nil
}

func put(key string, given []Option) (*pb.PutRequest, error) {
	o, err := single(callPut, key, given)
	return &pb.PutRequest{Key: key, Ttl: o.ttl, IfVersion: o.ifVersion, RequestId: o.requestID}, err
}

func get(key string, given []Option) (*pb.GetRequest, error) {
	o, err := single(callGet, key, given)
	return &pb.GetRequest{Key: key, Consistency: o.consistency}, err
}

func remove(key string, given []Option) (*pb.DeleteRequest, error) {
	o, err := single(callDelete, key, given)
	return &pb.DeleteRequest{Key: key, IfVersion: o.ifVersion, RequestId: o.requestID}, err
}

func batchPutJSON(entries map[string]any, given []Option) (*pb.BatchPutRequest, error) {
	texts := make(map[string]string, len(entries))
	for key, value := range entries {
		text, err := encode(value)
		if err != nil {
			return nil, err
		}
		texts[key] = text
	}
	return batchPutText(texts, given)
}

func batchPutText(entries map[string]string, given []Option) (*pb.BatchPutRequest, error) {
	for key, text := range entries {
		if err := checkText(reasonInvalidJSON, "the value", text); err != nil {
			return nil, err
		}
		if err := checkText(reasonInvalidKey, "the key", key); err != nil {
			return nil, err
		}
	}
	o, err := checked(callBatchPut, given)
	return &pb.BatchPutRequest{Entries: entries, Ttl: o.ttl, RequestId: o.requestID}, err
}

func batchGet(keys []string, given []Option) (*pb.BatchGetRequest, error) {
	if err := checkText(reasonInvalidKey, "the key", keys...); err != nil {
		return nil, err
	}
	o, err := checked(callBatchGet, given)
	return &pb.BatchGetRequest{Keys: keys, Consistency: o.consistency}, err
}

// single checks the key and the options of an operation on one key.
func single(call calls, key string, given []Option) (options, error) {
	if err := checkText(reasonInvalidKey, "the key", key); err != nil {
		return options{}, err
	}
	return checked(call, given)
}

// checked gives the options of an operation; a write has a request id then.
func checked(call calls, given []Option) (options, error) {
	o, err := collect(call, given)
	if err != nil || call&writes == 0 {
		return o, err
	}
	if o.requestID == nil {
		id := newRequestID()
		o.requestID = &id
	}
	return o, checkText(reasonInvalidRequestID, "the request id", *o.requestID)
}

func newRequestID() string {
	var id [16]byte
	// Does not fail on any system that Go runs on; from Go 1.24 on it never returns an error.
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}
