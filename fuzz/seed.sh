#!/bin/sh
# Fills corpus/ from the files that the tests read.
set -eu
cd "$(dirname "$0")"
golden=../tests/golden
for target in policy preferences requests adapter gguf weights template; do
    mkdir -p "corpus/$target"
done
cp ../policies/examples/*.yaml corpus/policy/
for family in gemma3 llama qwen3; do
    cp "$golden/families/$family/model-q8_0.gguf" "corpus/gguf/$family" 2>/dev/null || cp "$golden/families/$family/model.gguf" "corpus/gguf/$family"
    cp "$golden/families/$family/model.safetensors" "corpus/weights/$family"
    {
        cat "$golden/families/$family/adapter/adapter_config.json"
        printf '\000'
        cat "$golden/families/$family/adapter/adapter_model.safetensors"
    } > "corpus/adapter/$family"
done
find "$golden/templates/sources" -type f | while read -r file; do
    cp "$file" "corpus/template/$(basename "$file")"
done
# A route's number, then a body for it.
body() {
    printf "\\$(printf %03o "$1")%s" "$2" > "corpus/requests/$3"
}
turn='"messages":[{"role":"user","content":"hi"}]'
body 0 "{\"model\":\"org/tiny\",$turn,\"max_tokens\":4,\"stream\":true,\"temperature\":0.5,\"n\":2,\"logprobs\":true}" chat
body 0 "{\"model\":\"org/tiny\",$turn,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}}}],\"tool_choice\":\"auto\"}" tools
body 0 "{\"model\":\"org/tiny\",$turn,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":{\"type\":\"object\"}}}}" schema
body 0 "{\"model\":\"org/tiny\",$turn,\"guided_regex\":\"[a-z]+\",\"stop\":[\"x\"],\"logit_bias\":{\"5\":1}}" guided
body 1 '{"model":"org/tiny","prompt":["a",[1,2]],"max_tokens":2,"echo":true,"logprobs":1,"suffix":null}' completions
body 2 '{"model":"org/tiny","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"instructions":"b","max_output_tokens":16}' responses
body 3 '{"model":"org/tiny","max_tokens":8,"system":"s","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"stop_sequences":["z"]}' messages
body 4 '{"model":"org/tiny","messages":[{"role":"user","content":"a"}]}' count
body 5 '{"model":"org/tiny","input":["a","b"],"encoding_format":"base64"}' embeddings
body 6 '{"model":"org/tiny","input":["a","bad"]}' moderations
body 7 '{"model":"org/tiny","messages":[{"role":"user","content":"a"}],"stream":false,"options":{"num_predict":4,"seed":1}}' ollama-chat
body 8 '{"model":"org/tiny","prompt":"a","stream":false,"format":"json"}' ollama-generate
body 9 '{"model":"org/tiny"}' show
body 10 '{"model":"org/tiny","prompt":"a"}' tokenize
body 11 '{"model":"org/tiny","tokens":[1,2,3]}' detokenize
body 12 '{"prompt":"a","response":"bad"}' explain
body 13 '{"generation":"base"}' activate
body 14 '{"model":"org/tiny","input":["a","b"],"truncate":false}' embed
body 15 '{"model":"org/tiny","prompt":"a"}' older-embeddings
